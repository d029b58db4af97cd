"""A step that could not be made: what was learned before it is saved."""

import pytest

from perl_jax.tasks.training import stepping, undone
from tests.tasks.training import test_loop


def fails_at(which):
  def update(state, batch, step):
    if step == which:
      raise undone.UndoneStepError("no reward")
    return test_loop.update(state, batch, step)

  return update


@pytest.mark.parametrize(
  "step, saved", [(1, []), (2, [1]), (4, [3]), (6, [3, 5])]
)
def test_the_state_before_it_is_saved_with_its_place_in_the_data(
  tmp_path, step, saved
):
  """Evaluations are at 3 and 6; where one has saved already, nothing is."""
  saver = test_loop.Saver()
  with pytest.raises(undone.UndoneStepError, match="no reward"):
    test_loop.run(tmp_path, saver=saver, update=fails_at(step))
  assert list(saver.saved) == saved
  if saved:
    value, meta, _ = saver.saved[saved[-1]]
    assert value == sum(range(step - 1))
    assert meta["data"] == {"next": step - 1}


def test_so_is_a_state_that_could_not_be_judged(tmp_path):
  """With the line of its step, as one that is told to stop there."""

  def evaluate(state, step):
    raise undone.UndoneStepError("no reward")

  saver = test_loop.Saver()
  with pytest.raises(undone.UndoneStepError, match="no reward"):
    test_loop.run(tmp_path, saver=saver, evaluate=evaluate)
  value, meta, score = saver.saved[3]
  assert (value, score) == (0 + 1 + 2, None)
  assert meta["data"] == {"next": 3}
  assert meta[stepping.UNJUDGED]["train/loss"] == 3.0
