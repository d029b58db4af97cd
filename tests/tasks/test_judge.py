"""The task `judge` with two models that have answered already, and real judges.

What is computed on devices is in test_judge_runs.py.
"""

import collections
import json
import math
import types

import pytest
from absl import logging

from perl_jax import endpoints, files, tasks
from perl_jax.tasks import judge, report
from perl_jax.tasks.judging import answers_file, sides, statistics
from perl_jax.tasks.training import inputs
from tests.endpoints import test_chat
from tests.endpoints.server import serving
from tests.reporting import runs
from tests.tasks import tiny
from tests.tasks.judging import test_chat as judging_chat
from tests.tasks.judging import toys

RIGHT = '{"add_item": {"item": "mocha", "quantity": "1"}}'
# The policy is right twice and the anchor once; shorter are 2, 1 and 0.
TEXTS = ((RIGHT, "{}"), (RIGHT, "no"), ("not at all", RIGHT), ("x", "yyy"),
         ("same", "same"))  # fmt: skip
STANDING = {"rows": "a"}


@pytest.fixture
def answered(monkeypatch):
  """Makes both sides have said `TEXTS`."""
  pairs = [
    pair._replace(row=toys.row(i, reference=RIGHT))
    for i, pair in enumerate(toys.pairs(*TEXTS))
  ]
  start = types.SimpleNamespace(role=None, load_tokenizer=lambda: None)
  both = sides.Sides("anchor", start, start, None, {})
  found = sides.Answered(pairs, {"policy.kl": 0.5}, 0)
  data = types.SimpleNamespace(rows=[pair.row for pair in pairs])
  monkeypatch.setattr(sides, "load", lambda *_: both)
  monkeypatch.setattr(sides, "answers", lambda *_: found)
  monkeypatch.setattr(inputs, "read", lambda *_, **__: data)
  monkeypatch.setattr(judge.initial_roles, "place", lambda *_: {})
  monkeypatch.setattr(
    judge.standing,
    "of_evaluation",
    lambda *_: judge.standing.Standing(STANDING, STANDING),
  )
  return pairs


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(endpoints.client.time, "sleep", lambda _: None)
  with serving() as found:
    found.answer = judging_chat.shorter
    yield found


def config(server=None, **fields):
  if server is not None:
    fields |= {"endpoint__url": server.url, "endpoint__model": "small"}
  return tiny.config("judge", policy__init="runs/rl", **fields)


def test_verdicts_and_numbers(answered, server, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text(
    "def first(prompts, a, b, rows): return ['a'] * len(a)\n"
  )
  workdir = tmp_path / "run"
  judges = '("gold", "endpoint", "./mine.py:first")'
  found = tasks.run(config(server, judges=judges), workdir)
  assert found == tiny.summary(workdir) | {
    key: value for key, value in found.items() if math.isnan(value)
  }
  # gold: win, win, loss, tie, tie. shorter: loss, loss, win, win, tie.
  for name, value in (
    ("n", 5), ("unpaired", 0), ("policy.kl", 0.5),
    ("by.gold.win_rate", 0.4), ("by.gold.tie_rate", 0.4),
    ("by.gold.loss_rate", 0.2), ("by.gold.win_rate_ties_half", 0.6),
    ("by.gold.judged", 5), ("by.gold.consistency", 1.0),
    ("by.endpoint.win_rate_ties_half", 0.5), ("by.endpoint.unparsable", 0),
    ("by.first.tie_rate", 1.0), ("by.first.first_rate", 1.0),
    ("by.first.consistency", 0.2),
    ("by.gold_and_endpoint.agreement", 0.2),
    ("by.gold_and_first.agreement", 0.4), ("by.gold_and_first.kappa", 0.0),
    ("policy.characters", sum(len(a) for a, _ in TEXTS) / 5),
    ("anchor.characters", sum(len(b) for _, b in TEXTS) / 5),
  ):  # fmt: skip
    assert found[name] == pytest.approx(value), name
  low, high = (
    found[f"by.gold.win_rate_ties_half_{end}"] for end in ("low", "high")
  )
  assert 0 <= low < 0.6 < high <= 1
  rows = files.read_jsonl(workdir / judge.VERDICTS)
  assert [row["judges"]["gold"]["outcome"] for row in rows] == [
    "win", "win", "loss", "tie", "tie",
  ]  # fmt: skip
  one = rows[2]
  assert (one["id"], one["prompt"]) == ("row 2", "user: say 2")
  assert (one["policy"], one["against"]) == TEXTS[2]
  assert (one["reference"], one["against_is"]) == (RIGHT, "anchor")
  assert one["judges"]["endpoint"] == {
    "outcome": "win", "policy_first": "policy", "policy_last": "policy",
    "reasons": ["The shorter one.\nA", "The shorter one.\nB"],
  }  # fmt: skip
  said = one["judges"]["first"]
  assert (said["policy_first"], said["policy_last"]) == ("policy", "anchor")
  assert len(server.asked) == 8  # of 4 pairs that differ, in both orders
  text = report.write_report(workdir).read_text()
  runs.Checker(text)
  assert "What judges say" in runs.headings(text)
  assert "win rate, a tie as half, by gold" in text


def test_a_finished_command_asks_nobody(answered, server, tmp_path, caplog):
  workdir = tmp_path / "run"
  first = tasks.run(config(server, judges="endpoint"), workdir)
  asked, before = len(server.asked), tiny.tree(workdir)
  logging.set_verbosity(logging.INFO)
  with caplog.at_level("INFO", logger="absl"):
    second = tasks.run(config(server, judges="endpoint"), workdir)
  assert second == tiny.summary(workdir) and second["n"] == first["n"]
  assert "has finished" in caplog.text
  assert len(server.asked) == asked and tiny.tree(workdir) == before
  with pytest.raises(ValueError, match=r"config\.bootstrap\.seed: 0 -> 1"):
    tasks.run(config(server, judges="endpoint", bootstrap__seed=1), workdir)


def test_a_run_that_failed_goes_on_where_it_was(answered, server, tmp_path):
  """What was answered, and paid for, is not asked again."""
  fields = {"judges": "endpoint", "endpoint__parallel": 1}
  server.plan += [(200, {}, None, 0)] * 3 + [(404, {}, "gone", 0)]
  workdir = tmp_path / "run"
  with pytest.raises(
    ValueError, match=r"^config\.endpoint: http.*answered 404"
  ):
    tasks.run(config(server, **fields), workdir)
  kept = answers_file.read(workdir)
  assert len(kept) >= 3 and not (workdir / "summary.json").exists()
  with (workdir / answers_file.NAME).open("a") as file:
    file.write('{"key": "torn')  # as a kill would leave it
  server.plan.clear()
  found = tasks.run(config(server, **fields), workdir)
  assert found["by.endpoint.win_rate_ties_half"] == 0.5
  key_of = judging_chat.judge_of(server)._chat.key_of
  texts = [request["messages"][0]["content"] for request in server.asked]
  times = collections.Counter(map(key_of, texts))
  assert len(times) == 8 and kept.keys() < times.keys()
  assert all(times[key] == 1 for key in kept)


def test_how_a_judge_is_asked_may_change(answered, server, tmp_path, caplog):
  """A server that cannot keep up, and one that is elsewhere."""
  workdir, fields = tmp_path / "run", {"judges": "endpoint"}
  server.plan += [(200, {}, None, 0)] * 3 + [(404, {}, "gone", 0)]
  with pytest.raises(ValueError, match="answered 404"):
    tasks.run(config(server, endpoint__parallel=1, **fields), workdir)
  server.plan.clear()
  kept, asked = answers_file.read(workdir), len(server.asked)
  calmer = {"endpoint__parallel": 2, "endpoint__request_seconds": 500.0}
  found = tasks.run(config(server, **calmer, **fields), workdir)
  assert found["by.endpoint.win_rate_ties_half"] == 0.5
  assert len(server.asked) == asked + 8 - len(kept)
  asked, before = len(server.asked), tiny.tree(workdir)
  again = tasks.run(config(server, timeout=7.0, **fields), workdir)
  assert again["n"] == 5 and tiny.tree(workdir) == before
  with serving() as other:
    other.answer = judging_chat.shorter
    tasks.run(config(other, **fields), workdir)
    assert len(other.asked) == 8 and len(server.asked) == asked
  with pytest.raises(ValueError, match=r"config\.endpoint\.model: 'small' ->"):
    tasks.run(
      config(endpoint__url=server.url, endpoint__model="large", **fields),
      workdir,
    )


def test_what_has_changed_is_judged_anew(
  answered, server, tmp_path, caplog, monkeypatch
):
  """With another policy in its place, say; equal requests are answered."""
  workdir = tmp_path / "run"
  tasks.run(config(server, judges="endpoint"), workdir)
  asked = len(server.asked)
  monkeypatch.setitem(STANDING, "rows", "b")
  answered[0] = answered[0]._replace(policy="brief")
  found = tasks.run(config(server, judges="endpoint"), workdir)
  assert "rows: a -> b" in caplog.text
  assert len(server.asked) == asked + 2
  assert found["n"] == 5
  first = files.read_jsonl(workdir / judge.VERDICTS)[0]
  assert first["policy"] == "brief"


def test_the_key_is_nowhere(answered, server, tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("MY_JUDGE_KEY", test_chat.SECRET)
  server.plan += [(503, {}, f"busy {test_chat.SECRET}", 0)]
  server.answer = lambda _: test_chat.completion(f"{test_chat.SECRET}\nA")
  workdir = tmp_path / "run"
  tasks.run(
    config(server, judges="endpoint", endpoint__key_variable="MY_JUDGE_KEY"),
    workdir,
  )
  report.write_report(workdir)
  assert server.headers[0]["Authorization"] == f"Bearer {test_chat.SECRET}"
  for name, content in tiny.tree(workdir).items():
    assert test_chat.SECRET.encode() not in content, name
    assert json.dumps(test_chat.SECRET)[1:-1].encode() not in content, name
  assert test_chat.SECRET not in caplog.text
  monkeypatch.delenv("MY_JUDGE_KEY")  # who only looks again needs none
  tasks.run(
    config(server, judges="endpoint", endpoint__key_variable="MY_JUDGE_KEY"),
    workdir,
  )
  assert "MY_JUDGE_KEY" in (workdir / "config.json").read_text()
  assert "(the key)" in (workdir / judge.VERDICTS).read_text()


def test_refusals_are_counted_and_not_guessed(
  answered, server, tmp_path, caplog
):
  bodies = [
    test_chat.completion("A"), test_chat.completion("I cannot compare them."),
    test_chat.completion("Both are good."), test_chat.completion("A"),
    test_chat.completion("A", "length"), test_chat.completion("B"),
    test_chat.completion("A"), test_chat.completion("B"),
  ]  # fmt: skip
  server.plan += [(200, {}, body, 0) for body in bodies]
  workdir = tmp_path / "run"
  found = tasks.run(
    config(server, judges="endpoint", endpoint__parallel=1), workdir
  )
  by = {k.removeprefix("by.endpoint."): v for k, v in found.items()}
  # A pair with both verdicts, and one of equal responses.
  assert (by["judged"], by["win_rate"], by["tie_rate"]) == (2, 0.5, 0.5)
  assert (by["refused"], by["unparsable"], by["cut"]) == (1, 1, 1)
  rows = files.read_jsonl(workdir / judge.VERDICTS)
  said = [row["judges"]["endpoint"] for row in rows]
  assert [one["outcome"] for one in said] == [None, None, None, "win", "tie"]
  assert said[0]["policy_last"] == "refused"
  assert said[1]["policy_first"] == "unparsable"
  assert said[2]["policy_first"] == "cut"
  assert "3 of 5 pairs have no outcome" in caplog.text
  assert "refused 1, unparsable 1, cut 1" in caplog.text


def test_a_judge_without_a_single_verdict(answered, server, tmp_path, caplog):
  answered[:] = answered[:4]  # without the equal ones
  server.answer = lambda _: test_chat.completion("I like both!")
  workdir = tmp_path / "run"
  found = tasks.run(config(server, judges="endpoint"), workdir)
  assert math.isnan(found["by.endpoint.win_rate"])
  assert found["by.endpoint.unparsable"] == 8
  assert "endpoint: 4 of 4 pairs have no outcome" in caplog.text
  assert tiny.summary(workdir)["by.endpoint.win_rate"] == "nan"
  runs.Checker(report.write_report(workdir).read_text())


@pytest.mark.parametrize(
  "fields, text",
  [
    ({"judges": "golt"}, "Did you mean 'gold'"),
    ({"judges": "endpoint"}, "config.endpoint.url is empty"),
    ({"judges": "endpoint", "endpoint__url": "http://h/v1",
      "endpoint__model": "m", "endpoint__key_variable": "NOT_SET_BY_ANYBODY"},
     "is not set"),
    ({"judges": "no_such_module:f"}, "importing no_such_module failed"),
    ({"judges": "./no_file.py:f"}, "there is no file"),
    ({"bootstrap__draws": 0}, "config.bootstrap.draws=0 must be"),
    ({"endpoint__parallel": 0}, "config.endpoint.parallel=0 must be"),
    ({"timeout": -1.0}, "config.timeout=-1.0 must be"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_done(
  answered, tmp_path, fields, text
):
  workdir = tmp_path / "run"
  with pytest.raises(ValueError) as caught:
    tasks.run(config(**fields), workdir)
  assert text in str(caught.value)
  assert not workdir.exists()


def test_a_policy_that_is_not_there(tmp_path):
  fields = {"policy__init": str(tmp_path / "nothing")}
  with pytest.raises(FileNotFoundError, match=r"config\.policy\.init"):
    tasks.run(tiny.config("judge", **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_default_intervals_are_stated():
  found = config()
  assert (found.bootstrap.draws, found.bootstrap.seed) == (1000, 0)
  assert statistics.Bootstrap(1000, 0).draws == found.bootstrap.draws
