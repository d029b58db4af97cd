"""Evaluation: a policy beside its anchor, a reward model on its own rows."""

import shutil

import pytest

from perl_jax.tasks import evaluate
from perl_jax.tasks.training import lock
from tests.tasks import tiny
from tests.tasks.training.test_finished import stamps


def test_reward_model_is_measured_as_its_own_stage_did(finished, reward_run):
  """Another process would read the same files: same checkpoint, same rows."""
  found, own = tiny.summary(finished / "evaluate"), tiny.summary(reward_run)
  for key in ("accuracy", "auroc", "log_loss", "calibration_error", "margin"):
    assert found[f"reward_model.{key}"] == pytest.approx(own[key], rel=1e-5)
  mine, theirs = (
    tiny.lines(run, "scores.jsonl")
    for run in (finished / "evaluate", reward_run)
  )
  for row, other in zip(mine, theirs, strict=True):
    assert row["id"] == other["id"]
    assert row["chosen"] == pytest.approx(other["chosen"], rel=1e-4, abs=1e-7)


def test_policy_and_anchor_are_side_by_side(finished):
  workdir = finished / "evaluate"
  summary, rows = tiny.summary(workdir), tiny.lines(workdir, "samples.jsonl")
  assert summary["n"] == len(rows) == 8
  for side in ("policy", "anchor"):
    for name in ("reward", "gold", "length", "stop_rate", "entropy"):
      assert f"{side}.{name}" in summary
    for name in ("reward", "gold"):
      mean = sum(row[f"{side}_{name}"] for row in rows) / len(rows)
      assert summary[f"{side}.{name}"] == pytest.approx(mean)
  kl = sum(row["policy_kl"] for row in rows) / len(rows)
  assert summary["policy.kl"] == pytest.approx(kl)
  assert summary["policy.kl"] != 0.0
  assert "anchor.kl" not in summary


@pytest.mark.slow
def test_policy_without_an_earlier_stage_is_its_own_anchor(tmp_path, sft_run):
  summary = tiny.run(tmp_path / "run", "evaluate", policy__init=str(sft_run))
  assert summary["policy.kl"] == summary["policy.kl_per_token"] == 0.0
  for name in ("gold", "length", "entropy", "stop_rate"):
    assert summary[f"policy.{name}"] == summary[f"anchor.{name}"]
  assert not any("reward" in key for key in summary)
  assert not (tmp_path / "run" / "scores.jsonl").exists()


@pytest.fixture
def sampled(monkeypatch):
  """Counts how often a policy is compared with its anchor."""
  found, made = [], evaluate.evaluate_policy

  def evaluate_policy(*args):
    found.append(args)
    return made(*args)

  monkeypatch.setattr(evaluate, "evaluate_policy", evaluate_policy)
  return found


@pytest.mark.slow
def test_it_is_made_once_and_anew_where_something_has_changed(
  tmp_path, rl_run, reward_run, caplog, sampled
):
  """The same command: nothing. Another policy, a reward model, rows: anew."""
  workdir, function = tmp_path / "run", tmp_path / "judge.py"
  shutil.copytree(rl_run.parent, tmp_path / "stages")
  function.write_text(
    "def f(prompts, responses, rows):\n  return [1.0] * len(rows)\n"
  )
  options = {
    "policy__init": str(tmp_path / "stages" / "rl"),
    "reward__init": str(tmp_path / "stages" / "reward"),
    "reward__fn": f"{function}:f",
  }

  def run(**more):
    caplog.clear()
    return tiny.run(workdir, "evaluate", **options | more)

  first = run()
  before, when = tiny.tree(workdir), stamps(workdir)
  assert run() == first and len(sampled) == 1
  assert tiny.tree(workdir) == before and stamps(workdir) == when
  with lock.held(workdir), pytest.raises(ValueError, match="is in use by"):
    run(eval__samples=1)
  assert len(sampled) == 1
  # A comment is no change.
  function.write_text(f"# Judges.\n{function.read_text()}")
  assert run() == first and len(sampled) == 1
  function.write_text(
    "def f(prompts, responses, rows):\n  return [2.0] * len(rows)\n"
  )
  assert run()["policy.reward_fn"] == 2.0 and len(sampled) == 2
  assert "reward function: " in caplog.text
  # The policy of another step under the same path.
  shutil.rmtree(max((tmp_path / "stages" / "rl" / "checkpoints").glob("[0-9]")))
  assert run()["policy.checkpoint_step"] < first["policy.checkpoint_step"]
  assert "adapter of the policy: " in caplog.text and len(sampled) == 3
  assert "adapter of the anchor" not in caplog.text
  before = tiny.tree(workdir)
  again = run()
  assert len(sampled) == 3 and tiny.tree(workdir) == before
  assert again == tiny.summary(workdir)
  assert len(tiny.lines(workdir, "samples.jsonl")) == 8
  run(eval__samples=1)
  assert len(sampled) == 4
  assert len(tiny.lines(workdir, "samples.jsonl")) == 1


@pytest.mark.slow
def test_reward_model_alone(tmp_path, reward_run):
  workdir = tmp_path / "run"
  first = tiny.run(workdir, "evaluate", reward__init=str(reward_run))
  keys = {key.split(".")[0] for key in first}
  assert keys == {"reward_model", "seconds"}
  before = tiny.tree(workdir)
  again = tiny.run(workdir, "evaluate", reward__init=str(reward_run))
  assert again == first and tiny.tree(workdir) == before
