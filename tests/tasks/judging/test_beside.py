"""A judge beside the reward: its numbers, and what happens where it fails.

Nothing is sampled: responses are given. Whole runs are in test_rl_judge.py.
"""

import math

import pytest

from perl_jax import endpoints
from perl_jax.tasks.initial import saved
from perl_jax.tasks.judging import answers_file, beside
from perl_jax.tasks.training import undone
from tests.endpoints.server import serving
from tests.tasks import tiny
from tests.tasks.judging import test_chat, toys

SHORTER = (
  "def shorter(prompts, a, b, rows):\n"
  "  assert not any('bad' in text for text in a + b), 'bad text'\n"
  "  return [len(y) - len(x) for x, y in zip(a, b)]\n"
)
SAVED = [saved.Saved(2, {}, True)]


@pytest.fixture
def here(tmp_path, monkeypatch):
  (tmp_path / "mine.py").write_text(SHORTER)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def ready(workdir, count=10, **fields):
  """The judge of a run whose held-out prompts are those of `toys.row`."""
  fields = {"judge__by": "./mine.py:shorter"} | fields
  made = beside.Beside(tiny.config("rl", **fields), workdir)
  made.read(None, None, [toys.row(i, reference="ok") for i in range(count)])
  made.place({}, None)
  return made


def said(*texts):
  """Records of an evaluation with these responses."""
  return [{"row": i, "response": text} for i, text in enumerate(texts)]


def test_the_win_rate_of_a_known_preference(here):
  """5 wins, 2 ties and 3 losses of 10 are 60 %."""
  judge = ready(here / "run")
  policy = said(*["x"] * 5, "yy", "same", *["zzz"] * 3)
  anchor = said(*["yy"] * 5, "xx", "same", *["yy"] * 3)
  found = judge(anchor, policy)
  assert found["win_rate"] == pytest.approx(0.6)
  assert found["tie_rate"] == pytest.approx(0.2)
  assert found["judged"] == 10
  swapped = judge(policy, anchor)
  assert swapped["win_rate"] == pytest.approx(0.4)
  assert judge(anchor, anchor) == {
    "win_rate": 0.5, "win_rate_low": 0.5, "win_rate_high": 0.5,
    "tie_rate": 1.0, "judged": 10,
  }  # fmt: skip
  assert judge(anchor, policy) == found  # the same draws each time


def test_the_interval_is_that_of_a_share(here):
  """300 wins of 400: 1.96 sqrt(p (1 - p) / n) either way."""
  judge = ready(here / "run", 400, judge__rows=0)
  found = judge(said(*["yy"] * 400), said(*["x"] * 300, *["zzz"] * 100))
  half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
  assert found["win_rate_low"] == pytest.approx(0.75 - half, abs=0.006)
  assert found["win_rate_high"] == pytest.approx(0.75 + half, abs=0.006)


def test_the_first_prompts_are_judged(here):
  judge = ready(here / "run", judge__rows=4)
  policy = said("x", "x", "x", "zzz", *["zzz"] * 6)
  found = judge(said(*["yy"] * 10), policy)
  assert (found["judged"], found["win_rate"]) == (4, 0.75)


def test_a_run_without_a_judge(here):
  judge = ready(here / "run", judge__by="")
  assert judge(said("x"), said("y")) == {}
  assert judge.stands_on == judge.given == {}
  assert judge.best == ("validation/reward", "max")
  assert judge.is_score({"validation/reward": 1.0})
  with judge.keeping():
    pass
  assert not (here / "run").exists()


def test_a_judge_that_fails_costs_no_run(here, caplog):
  """Unless nothing has ever been judged, and the best is kept by it."""
  judge = ready(here / "run", best="judge")
  anchor, policy = said("yy", "yy"), said("x", "bad")
  assert judge(anchor, policy) == {"judged": 0}
  assert "config.judge.by='./mine.py:shorter' has judged nothing" in caplog.text
  assert "bad text" in caplog.text and "goes on without" in caplog.text
  assert judge.best == ("validation/win_rate", "max")
  assert not judge.is_score({"validation/reward": 1.0, "validation/judged": 0})
  assert judge(anchor, said("x", "x"))["win_rate"] == 1.0
  with pytest.raises(undone.UndoneStepError, match="the same command"):
    judge(anchor, policy, last=True)
  by_reward = ready(here / "run")
  assert by_reward(anchor, policy, last=True) == {"judged": 0}


def test_a_fresh_run_tries_the_judge_and_one_that_goes_on_does_not(
  here, monkeypatch
):
  (here / "mine.py").write_text("def broken(prompts, a, b, rows): return 7\n")
  fields = {"judge__by": "./mine.py:broken"}
  with pytest.raises(ValueError, match=r"config\.judge\.by: './mine.py:broken"):
    ready(here / "run", **fields)
  monkeypatch.setattr(saved, "checkpoints", lambda _: SAVED)
  judge = ready(here / "run", **fields)
  assert judge(said("x"), said("yy")) == {"judged": 0}


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(endpoints.client.time, "sleep", lambda _: None)
  with serving() as found:
    found.answer = test_chat.shorter
    yield found


def served(workdir, server, **fields):
  return ready(
    workdir,
    judge__by="endpoint",
    judge__endpoint__url=server.url,
    judge__endpoint__model="small",
    **fields,
  )


def test_an_endpoint_is_asked_once_however_often_a_run_goes_on(
  here, server, monkeypatch
):
  workdir = here / "run"
  workdir.mkdir()
  anchor, policy = said("yy", "yy", "x"), said("x", "x", "zzz")
  found, asked = [], []
  for _ in range(2):
    judge = served(workdir, server)
    with judge.keeping():
      found.append(judge(anchor, policy))
    asked.append(len(server.asked))
    monkeypatch.setattr(saved, "checkpoints", lambda _: SAVED)
  assert found[0] == found[1]
  assert found[0]["win_rate"] == pytest.approx(2 / 3)
  # Three pairs in both orders, and one in a fresh run, to try the endpoint.
  assert asked == [8, 8]
  assert len(answers_file.read(workdir)) == 6


def test_an_endpoint_that_is_away(here, server, monkeypatch, caplog):
  gone = (404, {}, "no such model", 0)
  server.plan += [gone] * 2
  with pytest.raises(ValueError, match=r"config\.judge\.by='endpoint': .*404"):
    served(here / "run", server)
  server.plan.clear()
  judge = served(here / "run", server)
  server.plan += [gone] * 4
  assert judge(said("yy", "yy"), said("x", "zzz")) == {"judged": 0}
  assert "404" in caplog.text
  server.plan.clear()  # what was not asked any more
  assert judge(said("yy", "yy"), said("x", "zzz"))["judged"] == 2


def test_answers_that_are_no_verdicts(here, server, caplog):
  judge = served(here / "run", server)
  server.answer = lambda _: test_chat.test_chat.completion("Both are nice.")
  assert judge(said("yy"), said("x")) == {"judged": 0}
  assert "no answer of it was a verdict" in caplog.text
