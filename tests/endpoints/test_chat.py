"""Chat completions from a real HTTP server that answers as it is told."""

import json
import urllib.parse

import pytest

from perl_jax import endpoints
from perl_jax.endpoints import chat as chat_lib
from tests.endpoints.server import serving

SECRET = "sk-very/secret+key=="


def completion(text, why="stop", **more):
  message = {"role": "assistant", "content": text} | more
  return json.dumps({"choices": [{"message": message, "finish_reason": why}]})


@pytest.fixture
def server():
  with serving() as found:
    found.answer = lambda request: completion(
      request["messages"][-1]["content"].upper()
    )
    yield found


def chat_of(server, *, tries=8, key_variable=endpoints.KEY_VARIABLE, **more):
  client = endpoints.Client(
    server.url, sleep=lambda _: None, tries=tries, key_variable=key_variable
  )
  return endpoints.Chat(client, {"model": "m", "temperature": 0.0}, **more)


def test_answers_come_in_order_and_equal_messages_are_asked_once(server):
  chat = chat_of(server, parallel=3)
  texts = [f"question {i % 7}" for i in range(20)]
  expected = [endpoints.Answer(text.upper(), "stop") for text in texts]
  assert list(chat.ask(texts)) == expected
  assert len(server.asked) == 7
  assert list(chat.ask(texts)) == expected and len(server.asked) == 7
  (first, *_) = server.asked
  assert set(first) == {"messages", "model", "temperature"}
  assert first["messages"][0]["role"] == "user"


def test_what_an_earlier_run_was_answered_is_not_asked_again(server):
  kept = {}
  one = chat_of(server, on_answer=kept.__setitem__)
  list(one.ask(["a", "b"]))
  assert len(server.asked) == len(kept) == 2
  again = chat_of(server, known=kept)
  assert [a.text for a in again.ask(["b", "a", "c"])] == ["B", "A", "C"]
  assert len(server.asked) == 3
  # Another model, temperature or server is asked anew.
  client = endpoints.Client(server.url)
  other = endpoints.Chat(client, {"model": "n"}, known=kept)
  assert other.key_of("a") not in kept
  list(other.ask(["a"]))
  assert len(server.asked) == 4


def test_answers_before_a_failure_are_handed_over(server):
  kept = {}
  server.plan += [(200, {}, None, 0), (200, {}, None, 0), (404, {}, "gone", 0)]
  chat = chat_of(server, parallel=1, on_answer=kept.__setitem__)
  with pytest.raises(endpoints.EndpointError, match="answered 404"):
    list(chat.ask(["a", "b", "c", "d"]))
  assert [answer.text for answer in kept.values()][:2] == ["A", "B"]


def test_a_busy_server_is_asked_again(server):
  server.plan += [(429, {}, "", 0), (503, {}, "", 0)]
  assert [a.text for a in chat_of(server).ask(["a"])] == ["A"]
  assert len(server.asked) == 3


@pytest.mark.parametrize(
  "body, answer",
  [
    (completion(None, refusal="I can not"), ("I can not", "refused")),
    (completion("", "content_filter"), ("", "refused")),
    ('{"choices": [{"message": null, "finish_reason": "content_filter"}]}',
     ("", "refused")),
    (completion("A bec", "length"), ("A bec", "length")),
    (completion(None, "length"), ("", "length")),
    (completion([{"text": "A"}, {"text": "!"}]), ("A!", "stop")),
    (completion("A", None), ("A", "stop")),
  ],
)  # fmt: skip
def test_how_an_answer_ended(server, body, answer):
  server.plan.append((200, {}, body, 0))
  assert [tuple(a) for a in chat_of(server).ask(["a"])] == [answer]


def test_a_filter_of_the_provider_is_a_refusal_and_other_errors_are_not(server):
  filtered = json.dumps({"error": {"code": "content_filter", "message": "no"}})
  server.plan += [(400, {}, filtered, 0), (400, {}, "too many tokens", 0)]
  chat = chat_of(server, parallel=1)
  assert [a.ended for a in chat.ask(["a"])] == ["refused"]
  with pytest.raises(endpoints.EndpointError, match="too many tokens"):
    list(chat.ask(["b"]))


@pytest.mark.parametrize(
  "status, said",
  [
    (400, "Invalid prompt: flagged as potentially violating our usage policy."),
    (403, "Your input was flagged. The provider requires moderation."),
    (422, '{"error": {"code": "content_policy_violation"}}'),
  ],
)
def test_filters_of_other_providers_are_refusals_too(server, status, said):
  server.plan.append((status, {}, said, 0))
  assert [a.ended for a in chat_of(server).ask(["a"])] == ["refused"]


def test_a_key_that_is_not_let_in_is_no_refusal(server):
  server.plan.append((403, {}, "this key may not use the model", 0))
  with pytest.raises(endpoints.EndpointError, match="may not use"):
    list(chat_of(server).ask(["a"]))


@pytest.mark.parametrize(
  "body",
  ['{"error": "x"}', "[]", '"A"', "{}", completion(3),
   '{"choices": [], "error": "x"}',
   '{"choices": [{"message": null}]}', '{"choices": [null]}'],
)  # fmt: skip
def test_what_is_no_chat_completion(server, body):
  server.plan.append((200, {}, body, 0))
  with pytest.raises(endpoints.EndpointError, match="no chat completion"):
    list(chat_of(server).ask(["a"]))


@pytest.mark.parametrize(
  "status, body",
  [
    (400, '{"error": {"code": "context_length_exceeded", "message": "m"}}'),
    (400, "This model's maximum context length is 8192 tokens."),
    (400, "the request exceeds the available context size"),
    (413, "Prompt is too long: 9 tokens > 8 maximum"),
  ],
)
def test_one_message_that_is_too_long_is_no_end_of_the_others(
  server, status, body
):
  """It is asked about again next time: the model may read more by then."""
  kept = {}
  server.plan += [(status, {}, body, 0)]
  chat = chat_of(server, parallel=1, on_answer=kept.__setitem__)
  long, other = chat.ask(["a", "b"])
  assert long.ended == "too_long" and body in long.text.replace("\\'", "'")
  assert other == endpoints.Answer("B", "stop")
  assert list(kept.values()) == [other]


@pytest.mark.parametrize("body", ['{"choices": []}', '{"choices": null}'])
def test_a_completion_without_a_choice_says_nothing(server, body):
  kept = {}
  server.plan += [(200, {}, body, 0)]
  chat = chat_of(server, parallel=1, on_answer=kept.__setitem__)
  answers = list(chat.ask(["a", "b"]))
  assert [a.ended for a in answers] == ["nothing", "stop"]
  assert list(kept.values()) == answers[1:]


def test_half_of_a_surrogate_pair_can_be_asked_about(server):
  assert [a.text for a in chat_of(server).ask(["x\ud83d"])] == ["X?"]


@pytest.mark.parametrize(
  "url, found",
  [
    ("http://h:1/v1", "http://h:1/v1/chat/completions"),
    ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
    ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
  ],
)
def test_the_address_of_completions(url, found):
  assert chat_lib.address(url) == found


def test_an_address_with_a_key_is_refused_without_a_word_of_it():
  with pytest.raises(ValueError, match="environment variable") as caught:
    chat_lib.address(f"https://h/v1?key={SECRET}")
  assert SECRET not in str(caught.value)


# The key.


def everything(error):
  """An error with all that led to it, as a traceback shows it."""
  texts = []
  while error is not None:
    texts += [str(error), repr(error)]
    error = error.__cause__ or error.__context__
  return " ".join(texts)


def test_a_key_is_sent_and_nowhere_said(server, monkeypatch, caplog):
  """Whatever the server makes of it: errors, headers, answers repeat it."""
  monkeypatch.setenv("MY_JUDGE_KEY", f" {SECRET}\n")
  many = "x" * 190 + SECRET  # cut in the middle of the key
  for status, headers, body in (
    (401, {}, f"wrong key {SECRET}"),
    (401, {}, many),
    ((401, f"wrong key {SECRET}"), {}, ""),
    (401, {}, json.dumps({"key": SECRET}).replace("/", "\\/")),
    (401, {}, f"no {urllib.parse.quote(SECRET)}"),
    (401, {}, f"no {urllib.parse.quote(SECRET, safe='')}"),
    (307, {"Location": f"http://x/{SECRET}"}, ""),
    (503, {}, f"busy {SECRET}"),
    (200, {}, f"<html>{SECRET}"),
    (200, {}, many),
    (200, {}, json.dumps({"error": SECRET})),
  ):
    server.plan += [(status, headers, body, 0)] * 2
    chat = chat_of(server, tries=2, key_variable="MY_JUDGE_KEY")
    with pytest.raises(endpoints.EndpointError) as caught:
      list(chat.ask(["a"]))
    for form in (SECRET[:8], "secret"):
      assert form not in everything(caught.value)
    server.plan.clear()
  assert SECRET[:8] not in caplog.text
  for body in (completion(f"it is {SECRET}"), completion(None, refusal=SECRET)):
    server.plan.append((200, {}, body, 0))
    (answer,) = chat_of(server, key_variable="MY_JUDGE_KEY").ask(["a"])
    assert SECRET not in answer.text and "(the key)" in answer.text
  sent = {headers["Authorization"] for headers in server.headers}
  assert sent == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("name", ["NOT_SET", SECRET])
def test_a_key_that_is_not_there(monkeypatch, name):
  """Somebody may have written the key itself where its name belongs."""
  monkeypatch.delenv("NOT_SET", raising=False)
  with pytest.raises(ValueError, match="is not set") as caught:
    endpoints.Client("http://h/x", key_variable=name)
  assert SECRET not in everything(caught.value)


@pytest.mark.parametrize("key", [f"{SECRET}\nX: y", f"{SECRET}é", "a\x7fb"])
def test_a_key_that_is_no_header(monkeypatch, key):
  monkeypatch.setenv("MY_JUDGE_KEY", key)
  with pytest.raises(ValueError, match="other characters") as caught:
    endpoints.Client("http://h/x", key_variable="MY_JUDGE_KEY")
  assert SECRET not in everything(caught.value)
