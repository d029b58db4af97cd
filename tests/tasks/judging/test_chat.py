"""Templates, verdicts of answers, and a judge behind a real HTTP server."""

import json
import math

import pytest

from configs import judge as judge_config
from perl_jax import endpoints
from perl_jax.tasks.judging import chat, statistics
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.settings import judge as settings
from tests.endpoints import test_chat
from tests.endpoints.server import serving
from tests.tasks.judging import toys

WIN, TIE, LOSS = statistics.WIN, statistics.TIE, statistics.LOSS


@pytest.mark.parametrize(
  "text, verdict",
  [
    ("A", WIN), ("B", LOSS), ("tie", TIE), ("a", WIN), (" b.\n\n", LOSS),
    ("TIE", TIE), ("**A**", WIN), ("[[B]]", LOSS), ("(A)", WIN), ('"B"', LOSS),
    ("Verdict: A", WIN), ("**Verdict:** B", LOSS), ("Final verdict: tie", TIE),
    ("Answer: A.", WIN), ("My verdict is B", LOSS), ("Winner: B", LOSS),
    ("Response A is better.", WIN), ("The response B is the better response",
    LOSS), ("Assistant A wins", WIN), ("Response B", LOSS),
    ("B is polite, and A is right.\n\nA", WIN),
    ("A\nOn second thoughts:\nB", LOSS),
    ("I'm sorry, but both are bad.\ntie", TIE), ("_B_", LOSS),
    ("Verdict: a tie", TIE), ("A tie!", TIE), ("It's a tie.", TIE),
    ("The better response is B.", LOSS), ("Response A is slightly better", WIN),
    ("Final answer: **A**\n---", WIN), ("```\nB\n```", LOSS),
    # In the brackets of MT-Bench, whose C is a tie.
    ("[[C]]", TIE), ("B is wrong. My final verdict is: [[A]].", WIN),
    ("I choose [[B]], as [[b]] is right", LOSS), ("[[tie]]", TIE),
    # In those of Arena-Hard.
    ("My final verdict is: [[A>>B]]", WIN), ("[[A>B]].", WIN),
    ("[[A=B]]", TIE), ("[[B>A]]", LOSS), ("[[B>>A]]", LOSS),
    # An object, as with a response_format.
    ('{"verdict": "A"}', WIN), ('{"verdict": "B", "why": "A is rude."}', LOSS),
    ('{"why": "A, or B?", "winner": "Response B"}', LOSS),
    ('```json\n{\n  "why": "x",\n  "verdict": "tie"\n}\n```', TIE),
    # What a model thinks aloud is no answer.
    ("<think>I cannot say. B?\n</think>\n\nA", WIN),
    ("<think>\nB\n</think>{\"verdict\": \"A\"}", WIN),
  ],
)  # fmt: skip
def test_what_is_a_verdict(text, verdict):
  assert chat.read_verdict(endpoints.Answer(text, "stop")) == (verdict, "")


@pytest.mark.parametrize(
  "text, ended, fault",
  [
    ("", "stop", "unparsable"),
    ("  \n ", "stop", "unparsable"),
    ("C", "stop", "unparsable"),
    ("AB", "stop", "unparsable"),
    ("A or B", "stop", "unparsable"),
    ("A and B are equally good", "stop", "unparsable"),
    ("A is better than B", "stop", "unparsable"),
    ("Response A is not better", "stop", "unparsable"),
    ("A\nThat is because it is polite.", "stop", "unparsable"),
    ("A better one would be a tie breaker", "stop", "unparsable"),
    ("Both", "stop", "unparsable"),
    ("A?", "stop", "unparsable"),
    ("A/B", "stop", "unparsable"),
    ("Not A", "stop", "unparsable"),
    ("I waver between [[A]] and [[B]]", "stop", "unparsable"),
    ("[[A]] it is.\nOr is it?", "stop", "unparsable"),
    ("Is it [[A]]?", "stop", "unparsable"),
    ("[[D]]", "stop", "unparsable"),
    ("[[A>B]] or [[B>A]]", "stop", "unparsable"),
    ("[[A>A]]", "stop", "unparsable"),
    ('{"verdict": "both", "winner": "A"}', "stop", "unparsable"),
    ('{"verdict": "A", "verdict": "B"}', "stop", "unparsable"),
    ("<think>\nA\n</think>", "stop", "unparsable"),
    ("<think>A.</think>I'm sorry, I can't.", "stop", "refused"),
    ("I apologize, but no.", "stop", "refused"),
    ("longer than it reads", "too_long", "cut"),
    ("A", "nothing", "unparsable"),
    ("I'm sorry, I can't compare these.", "stop", "refused"),
    ("I\u2019m sorry, but no.", "stop", "refused"),
    ("I cannot help with that.", "stop", "refused"),
    ("A", "refused", "refused"),
    ("", "refused", "refused"),
    ("A", "length", "cut"),  # of "A is polite, and B is better", perhaps
  ],
)
def test_what_is_none(text, ended, fault):
  verdict, found = chat.read_verdict(endpoints.Answer(text, ended))
  assert math.isnan(verdict) and found == fault
  assert fault in pairs_lib.FAULTS


def test_the_template_of_the_package_shows_both():
  (pair,) = toys.pairs(("mine {b}", "theirs {prompt}"))
  template = chat.template_of("")
  text = template.fill(pair, swapped=False)
  assert "user: say 0" in text
  assert text.index("mine {b}") < text.index("theirs {prompt}")
  swapped = template.fill(pair, swapped=True)
  assert swapped.index("theirs {prompt}") < swapped.index("mine {b}")
  assert text.count("theirs") == text.count("mine") == 1
  assert sorted(text) == sorted(swapped)


def test_a_template_of_the_user(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text('{"json": 1} {prompt}|{a}|{b}|{reference}|{c}', "utf-8")
  (pair,) = toys.pairs(("x", "y"))
  found = chat.template_of(str(path)).fill(pair, swapped=False)
  assert found == '{"json": 1} user: say 0|x|y||{c}'
  path.write_text("{prompt} {a} {bb}", "utf-8")
  with pytest.raises(ValueError, match=r"mine\.txt.*\{b\} is not in"):
    chat.template_of(str(path))
  path.write_bytes(b"{prompt}{a}{b}\xff")
  with pytest.raises(ValueError, match="not UTF-8"):
    chat.template_of(str(path))
  with pytest.raises(FileNotFoundError, match="there is no such file"):
    chat.template_of(str(tmp_path / "other.txt"))


# Behind a server.


@pytest.fixture
def server():
  with serving() as found:
    yield found


def judge_of(server, name="endpoint", known=None, kept=None, **fields):
  config = judge_config.get_config()
  config.endpoint.update({"url": server.url, "model": "small"} | fields)
  config.judges = name
  (named,) = settings.judges_of(config)
  kept = {} if kept is None else kept
  return chat.load(named, config, known or {}, kept.__setitem__)


def shorter(request):
  """Answers like a judge that prefers the shorter response."""
  text = request["messages"][0]["content"]
  a, b = (
    text.split(f"[Response {x}]\n")[1].split(f"\n[End of response {x}]")[0]
    for x in "AB"
  )
  best = "A" if len(a) < len(b) else "B" if len(b) < len(a) else "tie"
  return test_chat.completion(f"The shorter one.\n{best}")


def test_a_model_is_asked_in_both_orders(server):
  server.answer = shorter
  found = judge_of(server)(toys.pairs(("x", "xx"), ("xx", "x"), ("a", "b")))
  assert toys.verdicts(found) == [(1, 1), (-1, -1), (0, 0)]
  assert found[0][0].reason == "The shorter one.\nA"
  assert found[0][1].reason == "The shorter one.\nB"
  assert len(server.asked) == 6
  for request in server.asked:
    sent = {key: request[key] for key in request if key != "messages"}
    assert sent == {"model": "small", "temperature": 0.0, "max_tokens": 512}


def test_a_model_that_likes_the_first_makes_ties(server):
  server.answer = lambda request: test_chat.completion("A")
  found = judge_of(server)(toys.pairs(("x", "xx")))
  assert toys.verdicts(found) == [(1, -1)]


def test_no_verdict_in_one_order_is_none(server):
  server.plan += [
    (200, {}, test_chat.completion("A"), 0),
    (200, {}, test_chat.completion(None, refusal="no"), 0),
  ]
  ((first, last),) = judge_of(server, parallel=1)(toys.pairs(("x", "y")))
  assert (first.verdict, first.fault) == (1, "")
  assert math.isnan(last.verdict) and last.fault == "refused"
  assert last.reason == "no"


def test_fields_of_a_request(server):
  server.answer = lambda request: test_chat.completion("A")
  schema = {"properties": {"key": {"type": "string"}}}
  options = {"max_tokens": None, "max_completion_tokens": 9, "seed": 1}
  options |= {"response_format": schema}
  judge = judge_of(
    server, "endpoint:large", temperature=None, options=json.dumps(options)
  )
  judge(toys.pairs(("x", "y")))
  assert judge.label == "endpoint_large"
  sent = server.asked[0]
  told = {"model", "max_completion_tokens", "seed", "messages"}
  assert sent.keys() == told | {"response_format"}
  assert sent["model"] == "large"
  judge_of(server, max_tokens=0)(toys.pairs(("x", "y")))
  assert "max_tokens" not in server.asked[-1]


def test_what_was_answered_before_a_kill_is_not_asked_again(server):
  server.answer, kept = shorter, {}
  pairs = toys.pairs(("x", "xx"), ("yyy", "y"))
  first = judge_of(server, kept=kept)(pairs)
  assert len(server.asked) == 4
  assert judge_of(server, known=kept)(pairs) == first
  assert len(server.asked) == 4
  judge_of(server, known=kept, model="other")(pairs)
  assert len(server.asked) == 8


@pytest.mark.parametrize(
  "fields, text",
  [
    ({"url": ""}, "config.endpoint.url is empty"),
    ({"model": ""}, "config.endpoint.model is empty"),
    ({"url": "localhost:8000"}, "no address"),
    ({"url": "http://h/v1?key=1"}, "environment variable"),
    ({"key_variable": "NOBODY_HAS_SET_THIS"}, "is not set"),
    ({"options": "{"}, "config.endpoint.options"),
    ({"options": "{'api_key': 'sk-1'}"}, "config.endpoint.options: not valid"),
    ({"options": "[]"}, "must be a JSON object"),
    ({"options": '"sk-1"'}, "must be a JSON object"),
    ({"options": '{"api_key": "sk-1"}'}, "config.endpoint.key_variable"),
    (
      {"options": '{"extra": [{"X-Api-Key": "sk-1"}]}'},
      "has the field 'X-Api-Key'",
    ),
  ],
)
def test_fields_that_cannot_be(server, fields, text):
  with pytest.raises(ValueError, match=text.replace(".", r"\.")) as caught:
    judge_of(server, **fields)
  assert "sk-1" not in str(caught.value)
  assert not server.asked
