"""Which checkpoints are kept, with and without an evaluation's score."""

import pytest

from perl_jax import checkpoint
from tests.checkpoint.test_saving import kept, reward_role, same, state


def test_a_checkpoint_without_a_score_is_never_the_best(tmp_path):
  """It is only to resume from, and the best one stays through it."""
  for mode, best in (("max", 1), ("min", 4)):
    workdir = tmp_path / mode
    with checkpoint.Checkpointer(workdir, metric="m", mode=mode) as saver:
      for step, score in {
        1: 0.9,
        2: None,
        3: None,
        4: 0.1,
        5: None,
        6: None,
      }.items():
        saver.save(step, state(step), {}, score and {"m": score})
        saver.wait()
        if step == 3:
          assert (saver.best_step, saver.latest_step) == (1, 3)
    assert kept(workdir) == sorted({best, 5, 6})
    trainable, _ = reward_role()
    found = checkpoint.load_trainable(workdir, "best", trainable)
    same(found, state(best).trainable)
    with checkpoint.Checkpointer(workdir, metric="m", mode=mode) as saver:
      assert (saver.best_step, saver.latest_step) == (best, 6)
      same(saver.restore(state(0)).state, state(6))


def test_before_the_first_evaluation_there_is_no_best(tmp_path):
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    for step in (1, 2, 3):
      saver.save(step, state(step), {}, None)
    saver.wait()
    assert (saver.best_step, saver.latest_step) == (None, 3)
  assert kept(tmp_path) == [2, 3]
  trainable, _ = reward_role()
  with pytest.raises(FileNotFoundError, match="first evaluation"):
    checkpoint.load_trainable(tmp_path, "best", trainable)
  same(
    checkpoint.load_trainable(tmp_path, "last", trainable), state(3).trainable
  )


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
  """As when what was saved before its evaluation is judged after a resume."""
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    saver.save(1, state(1), {"judged": False}, None)
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    saver.save(1, state(1), {"judged": True}, {"m": 0.5})
    saver.wait()
    assert saver.best_step == 1
    assert saver.restore(state(0)).meta == {"judged": True}


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_one_says(tmp_path, keep):
  with checkpoint.Checkpointer(
    tmp_path, metric="m", mode="max", keep=keep
  ) as saver:
    for step in range(1, 6):
      saver.save(step, state(step), {}, {"m": -step})
  assert kept(tmp_path) == [1, *range(6 - keep, 6)]
