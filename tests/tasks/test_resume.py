"""A killed run, started again with the same command, ends with the same bits.

Killed before its first checkpoint, while a checkpoint is about to be written
(its lines are in metrics.jsonl by then), and between two steps after one. What
a run leaves is compared with that of a run that nobody disturbed: metrics,
samples, scores, the summary but for its times, and every array of every
checkpoint, optimiser included.
"""

import signal
import time

import numpy as np
import pytest

from perl_jax import checkpoint, tasks
from perl_jax.data import loader
from tests import test_main
from tests.marks import by_night
from tests.tasks import tiny

STEPS = {"steps": 6, "eval_every": 2}


class Killed(BaseException):
  """No `except` of ours or of a library may catch it."""


def kill_before_batch(monkeypatch, count):
  """Dies when the loop asks for its `count`-th batch."""
  left = iter(range(count - 1))
  real = loader.TrainBatches.__next__

  def draw(self):
    if next(left, None) is None:
      raise Killed
    return real(self)

  monkeypatch.setattr(loader.TrainBatches, "__next__", draw)


def kill_before_save(monkeypatch, at):
  """Dies when the checkpoint of step `at` is due."""
  real = checkpoint.Checkpointer.save

  def save(self, step, *args):
    if step == at:
      raise Killed
    real(self, step, *args)

  monkeypatch.setattr(checkpoint.Checkpointer, "save", save)


def overrides(stage, finished):
  sft, reward = str(finished / "sft"), str(finished / "reward")
  return {
    "sft": {},
    "sft_lora": {"policy__init": sft, "tuning": "lora", "lora__dropout": 0.1},
    # Dropout draws keys: they too must go on where they were.
    "reward": {"reward__init": sft, "lora__dropout": 0.1, "microbatches": 2},
    "reward_ensemble": {"reward__init": sft, "ensemble": 2},
    "rl": {"policy__init": sft, "reward__init": reward},
    # The weight of the KL and the order of minibatches go on too.
    "rl_grpo": {
      "policy__init": sft, "reward__init": reward, "estimator": "grpo",
      "samples_per_prompt": 2, "ppo__epochs": 2, "ppo__minibatches": 2,
      "kl__target": 0.05, "kl__horizon": 64, "microbatches": 2,
    },
  }[stage] | STEPS  # fmt: skip


def same(whole, other):
  for name in ("metrics.jsonl", "samples.jsonl", "scores.jsonl"):
    assert (whole / name).exists() == (other / name).exists(), name
    if (whole / name).exists():
      assert tiny.lines(whole, name) == tiny.lines(other, name), name
  mine, theirs = (tiny.untimed(tiny.summary(w)) for w in (whole, other))
  assert mine == theirs
  assert tiny.kept(whole) == tiny.kept(other)
  mine, theirs = tiny.checkpoints(whole), tiny.checkpoints(other)
  assert mine.keys() == theirs.keys()
  assert any("opt_state" in name for name in mine)
  for name, array in mine.items():
    assert array.dtype == theirs[name].dtype
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
  "stage",
  [
    *("sft", "reward", "rl"),
    *map(by_night, ("sft_lora", "reward_ensemble", "rl_grpo")),
  ],
)
def test_killed_run_ends_with_the_same_bits(
  tmp_path, monkeypatch, finished, stage
):
  task, fields = stage.split("_")[0], overrides(stage, finished)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  tiny.run(whole, task, **fields)

  def killed(kill, number):
    with monkeypatch.context() as patches:
      kill(patches, number)
      with pytest.raises(Killed):
        tiny.run(broken, task, **fields)
    assert not (broken / "summary.json").exists()

  killed(kill_before_batch, 2)
  assert tiny.kept(broken) == []
  assert tiny.lines(broken)[-1]["step"] == 1
  killed(kill_before_save, 4)
  assert tiny.kept(broken) == [2]
  assert tiny.lines(broken)[-1]["step"] == 4
  killed(kill_before_batch, 4)  # of steps 3, 4, 5, 6
  assert max(tiny.kept(broken)) == 4
  assert tiny.lines(broken)[-1]["step"] == 5
  tiny.run(broken, task, **fields)
  same(whole, broken)

  # Nothing is left to do, and nothing is written twice.
  again = tiny.run(broken, task, **fields)
  same(whole, broken)
  assert tiny.untimed(again) == tiny.untimed(tiny.summary(whole))


@pytest.mark.slow
def test_sigkill(tmp_path):
  """The real thing: another process, a signal that nobody can catch."""
  values = tiny.fields("sft") | {
    "steps": 12, "eval_every": 2, "eval.rows": 0, "batch_size": 16,
  }  # fmt: skip
  config = tiny.override(tiny.config("sft"), values)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  tasks.run(config, whole)
  process = test_main.start(
    "--config=configs/sft.py",
    *(f"--config.{name}={value}" for name, value in values.items()),
    f"--workdir={broken}",
  )
  try:
    deadline = time.monotonic() + 500
    while not tiny.kept(broken):
      assert process.poll() is None, process.communicate()[1]
      assert time.monotonic() < deadline
      time.sleep(0.01)
  finally:
    process.kill()
    process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert max(tiny.kept(broken)) < 12
  assert not (broken / "summary.json").exists()
  tasks.run(config, broken)
  same(whole, broken)
