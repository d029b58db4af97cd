"""Evaluation: a policy beside its anchor, a reward model on its own rows."""

import pytest

from tests.tasks import tiny


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


@pytest.mark.slow
def test_reward_model_alone_and_again(tmp_path, reward_run):
  workdir = tmp_path / "run"
  first = tiny.run(workdir, "evaluate", reward__init=str(reward_run))
  assert {key.split(".")[0] for key in first} == {"reward_model", "seconds"}
  lines = tiny.lines(workdir)
  second = tiny.run(workdir, "evaluate", reward__init=str(reward_run))
  assert tiny.untimed(second) == tiny.untimed(first)
  assert tiny.lines(workdir) == lines
