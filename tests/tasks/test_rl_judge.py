"""RL runs with a judge beside the reward, from their files.

What a judge says, and what happens where it fails: judging/test_beside.py.
"""

import json

import pytest

from perl_jax import checkpoint, files
from perl_jax.data.sources import registry
from perl_jax.tasks.training import watch
from tests.tasks import tiny

pytestmark = pytest.mark.slow

# Says in each evaluation what script.json has for it, and counts the calls: one
# in each order, and one pair of them to try it in a fresh run.
CODE = """
import json, pathlib
HERE = pathlib.Path(__file__).parent

def judge(prompts, a, b, rows):
  path = HERE / "calls.json"
  calls = json.loads(path.read_text()) if path.exists() else 0
  path.write_text(json.dumps(calls + 1))
  evaluation, swapped = divmod(calls, 2)
  verdict = json.loads((HERE / "script.json").read_text())[evaluation]
  if verdict is None:
    raise RuntimeError("nobody is at home")
  return [-verdict if swapped else verdict] * len(a)

def reward(prompts, responses, rows):
  return [float(len(set(text))) for text in responses]
"""


@pytest.fixture
def run(tmp_path, compiled_once):
  """run(script, name, **fields): a run whose judge says that."""
  (tmp_path / "mine.py").write_text(CODE)

  def make(script, name="run", **fields):
    (tmp_path / "calls.json").unlink(missing_ok=True)
    (tmp_path / "script.json").write_text(json.dumps(script))
    return run_again(tmp_path / name, **fields)

  def run_again(workdir, **fields):
    given = {
      "tuning": "full",
      "reward__fn": f"{tmp_path}/mine.py:reward",
      "judge__by": f"{tmp_path}/mine.py:judge",
      "estimator": "grpo",
      "samples_per_prompt": 2,
      "best": "judge",
    } | fields
    tiny.run(workdir, "rl", **given)
    return workdir

  make.again = run_again
  return make


def rates(workdir):
  key = "validation/win_rate"
  return {row["step"]: row[key] for row in tiny.lines(workdir) if key in row}


def test_the_best_checkpoint_is_the_one_that_the_judge_prefers(run):
  """Whatever the reward says: both runs are the same but for the verdicts."""
  first = run([0, 1, -1], "first")
  last = run([0, -1, 1], "last")
  for workdir, best in ((first, 2), (last, 4)):
    found = rates(workdir)
    assert found[0] == 0.5 and found[best] > 0.5 > found[6 - best]
    assert checkpoint.step_of(workdir, "best") == best
  # Where one wins the other loses, of the same pairs.
  assert rates(first)[2] == pytest.approx(1 - rates(last)[2])
  rewards = [
    [row.get("validation/reward") for row in tiny.lines(workdir)]
    for workdir in (first, last)
  ]
  assert rewards[0] == rewards[1]
  summary = tiny.summary(first)
  assert summary["win_rate_before"] == 0.5
  assert summary["win_rate_after"] == rates(first)[4]


def test_a_judge_that_is_away_once(run, caplog):
  """The evaluation has no win rate, and its checkpoint is not the best."""
  workdir = run([0, -1, None])
  assert sorted(rates(workdir)) == [0, 2]
  assert checkpoint.step_of(workdir, "best") == 2
  assert tiny.kept(workdir) == [2, 4]
  assert "nobody is at home" in caplog.text
  assert tiny.summary(workdir)["reward_after"] != 0


def test_a_judge_that_is_always_away(run, tmp_path):
  """The run is saved, and ends once the judge is there."""
  with pytest.raises(ValueError, match="the same command"):
    run([0, None, None])
  workdir = tmp_path / "run"
  assert not (workdir / "summary.json").exists()
  (tmp_path / "script.json").write_text(json.dumps([1] * 9))
  (tmp_path / "calls.json").write_text("0")
  run.again(workdir)
  assert sorted(rates(workdir)) == [0, 4]
  assert checkpoint.step_of(workdir, "best") == 4


def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(
  run, tmp_path, monkeypatch
):
  """Line for line: the anchor's responses are drawn again, and are the same."""
  whole = run([0, 1, -1], "whole")
  look = watch.Watch.look

  def stop(self):
    look(self)
    calls = tmp_path / "calls.json"
    if calls.exists() and json.loads(calls.read_text()) == 4:
      raise watch.Stop("the test")  # after the evaluation of step 2

  monkeypatch.setattr(watch.Watch, "look", stop)
  with pytest.raises(BaseException, match="the test"):
    run([0, 1, -1], "stopped")
  monkeypatch.setattr(watch.Watch, "look", look)
  stopped = run.again(tmp_path / "stopped")
  assert tiny.lines(stopped) == tiny.lines(whole)
  assert rates(stopped)[4] < 0.5
  assert checkpoint.step_of(stopped, "best") == 2


def test_a_reward_model_beside_the_one_that_is_trained_on(
  sft_run, reward_run, tmp_path
):
  """Here it is the same, which is refused unless it is asked for."""
  fields = {
    "policy__init": str(sft_run),
    "reward__init": str(reward_run),
    "judge__by": f"reward:{reward_run}",
    "optimizer__learning_rate": 0.05,  # so that responses differ
  }
  with pytest.raises(ValueError, match=r"--config\.judge\.same_rows=warn"):
    tiny.run(tmp_path / "run", "rl", **fields)
  assert not (tmp_path / "run").exists()
  tiny.run(tmp_path / "run", "rl", judge__same_rows="warn", **fields)
  found = rates(tmp_path / "run")
  assert sorted(found) == [0, 2, 4] and found[0] == 0.5
  rows = tiny.lines(tmp_path / "run", "samples.jsonl")
  assert any(row["policy"] != row["anchor"] for row in rows)
  # Who has the higher score of the task `score` wins.
  prompts = registry.load(
    "coffee_bar", "prompts", seed=0,
    **tiny.config("rl").data.options.to_dict(),
  ).validation[:8]  # fmt: skip
  for step in (2, 4):
    shown = [row for row in rows if row["step"] == step]
    pairs = [
      {"prompt": list(prompt.prompt), "chosen": row["policy"],
       "rejected": row["anchor"]}
      for prompt, row in zip(prompts, shown, strict=True)
      if row["policy"] != row["anchor"]
    ]  # fmt: skip
    files.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    tiny.run(
      tmp_path / f"score_{step}", "score", "jsonl",
      reward__init=str(reward_run), data__path=str(tmp_path / "pairs.jsonl"),
    )  # fmt: skip
    scored = tiny.lines(tmp_path / f"score_{step}", "scores.jsonl")
    assert len(scored) == len(pairs) > 0
    wins = sum(row["score_chosen"] > row["score_rejected"] for row in scored)
    assert found[step] == (wins + (8 - len(pairs)) / 2) / 8
