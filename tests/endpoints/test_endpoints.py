"""The client and the scorer against a real server; no wait is waited for."""

import email.utils
import threading
import time

import pytest

from perl_jax import endpoints
from perl_jax.endpoints.client import in_parallel
from tests.endpoints.server import serving


@pytest.fixture
def server():
  with serving() as found:
    yield found


def client_of(server, waits=None, **options):
  waits = [] if waits is None else waits
  return endpoints.Client(server.url, sleep=waits.append, **options)


def scorer_of(server, waits=None, *, tries=8, **options):
  client = client_of(server, waits, tries=tries)
  return endpoints.Scorer(server.url, client=client, **options)


def ask(scorer, *responses):
  prompts = [[{"role": "user", "content": "hi"}] for _ in responses]
  rows = [
    {"id": "r", "prompt": prompts[0], "reference": "x", "fields": {"a": 1}}
    for _ in responses
  ]
  return scorer(prompts, responses, rows)


def failed(scorer, *texts, responses=("a",)):
  with pytest.raises(endpoints.EndpointError) as caught:
    ask(scorer, *responses)
  for text in texts:
    assert text in str(caught.value)


def test_conversations_and_rows_are_sent_and_scores_come_back(server):
  assert ask(scorer_of(server), "abc", "d") == [3, 1]
  (request,) = server.asked
  assert request["conversations"][1] == [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "d"},
  ]
  row = {"id": "r", "reference": "x", "fields": {"a": 1}}
  assert request["rows"] == [row, row]
  server.plan.append((200, {}, "[4.5]", 0))  # a list alone
  assert ask(scorer_of(server), "abc") == [4.5]


def test_batches_keep_the_order_and_equal_ones_are_asked_once(server):
  scorer = scorer_of(server, batch=3, parallel=2)
  texts = ["x" * (i % 8) for i in range(20)]
  expected = [i % 8 for i in range(20)]
  assert ask(scorer, *texts) == expected
  sizes = sorted(len(request["conversations"]) for request in server.asked)
  assert sizes == [2, 3, 3]
  assert ask(scorer, *texts) == expected  # known by now
  assert len(server.asked) == 3
  scorer.forget()
  assert ask(scorer, "x") == [1] and len(server.asked) == 4


def test_only_so_many_scores_are_kept(server):
  scorer = scorer_of(server, kept=2)
  assert ask(scorer, "a", "bb", "ccc") == [1, 2, 3]
  assert ask(scorer, "bb", "ccc") == [2, 3] and len(server.asked) == 1
  assert ask(scorer, "a") == [1] and len(server.asked) == 2


def test_what_may_pass_is_tried_again_with_longer_waits(server):
  waits = []
  server.plan += [(503, {}, "", 0), (500, {}, "oops", 0), (429, {}, "", 0)]
  assert ask(scorer_of(server, waits), "abc") == [3]
  assert waits == [0.5, 1.0, 2.0] and len(server.asked) == 4


def test_a_server_says_how_long_to_wait(server):
  waits = []
  date = email.utils.formatdate(time.time() + 50, usegmt=True)
  server.plan += [
    (429, {"Retry-After": "7"}, "", 0),
    (503, {"Retry-After": date}, "", 0),
    (503, {"Retry-After": "soon"}, "", 0),
  ]
  assert ask(scorer_of(server, waits), "abc") == [3]
  assert waits[0] == 7.0 and 30 < waits[1] <= 50 and waits[2] == 2.0


@pytest.mark.parametrize("zone", ["-0000", ""])
def test_a_date_without_a_zone_is_one_of_greenwich(server, zone):
  waits = []
  date = email.utils.formatdate(time.time() + 50).replace("-0000", zone)
  server.plan += [(503, {"Retry-After": date.strip()}, "", 0)]
  assert ask(scorer_of(server, waits), "abc") == [3]
  assert 30 < waits[0] <= 50


def test_a_server_that_asks_for_a_day_is_not_waited_for(server):
  waits = []
  server.plan += [(429, {"Retry-After": "86400"}, "quota", 0)]
  failed(scorer_of(server, waits), "429", "quota", "wait 86400 seconds")
  assert waits == [] and len(server.asked) == 1


def test_an_error_is_said_while_others_wait():
  released, daemons = threading.Event(), []

  def ask(item):
    daemons.append(threading.current_thread().daemon)
    if item == "busy":
      assert released.wait(10), "it was waited for"
    if item == "wrong":
      raise endpoints.EndpointError("no such model")
    return item

  found = in_parallel(ask, ["right", "busy", "wrong", *"abc"], 2)
  assert next(found) == "right"
  with pytest.raises(endpoints.EndpointError, match="no such model"):
    list(found)
  released.set()
  assert daemons == [True] * 3  # and nobody asks for the rest


def test_it_gives_up(server):
  server.plan += [(503, {}, "busy", 0)] * 3
  failed(
    scorer_of(server, tries=3), "gave no answer in 3 tries", "503", "'busy'"
  )
  assert len(server.asked) == 3


def test_a_wait_beyond_the_time_is_not_begun(server):
  waits = []
  server.plan += [(429, {"Retry-After": "3600"}, "", 0)] * 2
  failed(scorer_of(server, waits, seconds=30.0), "in 1 tries", "429")
  assert waits == []


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_another_try_would_not_change(server, status):
  server.plan.append((status, {}, "no such model", 0))
  key = "PERL_JAX_ENDPOINT_KEY" if status == 401 else "check address"
  failed(scorer_of(server), f"answered {status}", "no such model", key)
  assert len(server.asked) == 1


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_names_the_address(server, status):
  server.plan.append((status, {"Location": "http://elsewhere/x"}, "", 0))
  failed(scorer_of(server), "give the final address, http://elsewhere/x")


def test_slow_answers(server):
  waits = []
  server.plan += [(200, {}, None, 60), (200, {}, None, 0)]
  client = client_of(server, waits, request_seconds=1.0)
  scorer = endpoints.Scorer(server.url, client=client)
  started = time.monotonic()
  assert ask(scorer, "abc") == [3]
  assert waits[0] == 0.5 and time.monotonic() - started < 30
  server.plan += [(200, {}, None, 60)]
  failed(scorer_of(server, seconds=0.3), "timed out")


def test_a_server_that_is_not_there():
  with serving() as gone:
    pass
  failed(scorer_of(gone, tries=2), "in 2 tries", "refused", "Check that")


@pytest.mark.parametrize(
  "body, text",
  [
    ('{"scores": [1]}', "sent 2 conversations and answered with 1 scores"),
    ('{"scores": [1, 2, 3]}', "answered with 3 scores"),
    ('{"scores": [1, NaN]}', "answered with nan for the response 'bb'"),
    ('{"scores": [1e999, 1]}', "answered with inf for the response 'a'"),
    ('{"scores": [1, "2"]}', "answered with '2' for the response 'bb'"),
    ('{"scores": [1, null]}', "answered with None for"),
    ('{"score": [1, 2]}', "no list of scores"),
    ('"fine"', "no list of scores"),
    ("<html>", "something else than JSON: '<html>'"),
    ("", "something else than JSON: ''"),
  ],
)
def test_answers_that_are_no_scores(server, body, text):
  server.plan.append((200, {}, body, 0))
  scorer = scorer_of(server)
  failed(scorer, server.url, text, responses=("a", "bb"))
  assert ask(scorer, "a", "bb") == [1, 2]  # nothing of it was kept


@pytest.mark.parametrize(
  "body", ['{"error": "SECRET-1"}', '{"scores": ["SECRET-1"]}', "SECRET-1"]
)
def test_a_key_that_the_server_repeats_is_not_said(server, monkeypatch, body):
  monkeypatch.setenv("PERL_JAX_ENDPOINT_KEY", "SECRET-1")
  server.plan.append((200, {}, body, 0))
  with pytest.raises(endpoints.EndpointError, match="the key") as caught:
    ask(scorer_of(server), "a")
  assert "SECRET-1" not in str(caught.value)


def test_a_key_is_sent_and_never_part_of_an_address(server, monkeypatch):
  monkeypatch.setenv("PERL_JAX_ENDPOINT_KEY", "secret")
  ask(scorer_of(server), "a")
  assert server.headers[0]["Authorization"] == "Bearer secret"
  for url, text in (
    ("http://me:secret@host/x", "PERL_JAX_ENDPOINT_KEY"),
    ("http://host/x?a=1&api-key=secret", "'api-key'.*PERL_JAX_ENDPOINT_KEY"),
    ("http://host/x?Access_Token=secret", "'Access_Token'"),
    ("http://host/x?sig=secret", "'sig'"),
    ("ftp://host/x", "no address"),
    ("http:///x", "no address"),
  ):
    with pytest.raises(ValueError, match=text) as caught:
      endpoints.Client(url)
    assert "secret" not in str(caught.value)
