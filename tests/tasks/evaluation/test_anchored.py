"""The anchor's log-probs of training pairs, and when they are in a table."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from perl_jax import sharding
from perl_jax.tasks.evaluation import anchored

ROWS = 6


class Scored:
  """Scores all pairs but the one of index 2, and counts how often."""

  def __init__(self, shift=0.0):
    self.shift, self.passes = shift, 0

  def __call__(self, batches):
    assert list(batches) == ["batch"]
    self.passes += 1
    # Not in the order of the index, as batches are sorted by length.
    return {i: np.float32([-i, self.shift - i]) for i in (5, 0, 4, 1, 3)}


def expected(shift=0.0):
  found = np.array([[-i, shift - i] for i in range(ROWS)], np.float32)
  found[2] = 0
  return found


def table(score, steps=4):
  config = SimpleNamespace(steps=steps, batch_size=2)
  data = SimpleNamespace(
    train_rows=range(ROWS), once=lambda doing: iter(["batch"])
  )
  return anchored.table(config, data, score)


@pytest.mark.parametrize(("steps", "passes"), [(2, 0), (3, 0), (4, 1)])
def test_pairs_that_come_once_are_not_scored_beforehand(steps, passes):
  score = Scored()
  found = table(score, steps=steps)
  assert score.passes == passes and (found is None) == (not passes)


def test_all_pairs_are_in_the_table_and_what_is_none_is_0():
  found = table(Scored(0.1))
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected(np.float32(0.1)))


def test_pairs_are_looked_up_on_a_mesh_and_no_pair_is_0():
  found = expected(0.5)
  index = np.array([[5, -1], [0, 3], [-1, -1], [2, 4]], np.int32)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    of = anchored.looked_up(mesh, found)
    given = of(sharding.place_batch(mesh, index))
  by_hand = [[found[i] if i >= 0 else (0, 0) for i in row] for row in index]
  np.testing.assert_array_equal(given, by_hand)
  assert given.sharding.shard_shape(given.shape) == (1, 2, 2)
