"""The anchor's log-probs of training pairs, and when a file of them is read."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from perl_jax import sharding
from perl_jax.tasks.training import anchored

ROWS = 6
STANDS_ON = {"base": "b", "training rows (preferences)": "r"}


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


def table(workdir, score, stands_on=STANDS_ON, rows=ROWS, steps=4):
  config = SimpleNamespace(steps=steps, batch_size=2)
  data = SimpleNamespace(
    train_rows=range(rows), once=lambda doing: iter(["batch"])
  )
  return anchored.table(config, workdir, stands_on, data, score)


@pytest.mark.parametrize(("steps", "passes"), [(2, 0), (3, 0), (4, 1)])
def test_pairs_that_come_once_are_not_scored_beforehand(
  tmp_path, steps, passes
):
  score = Scored()
  found = table(tmp_path, score, steps=steps)
  assert score.passes == passes and (found is None) == (not passes)
  assert (tmp_path / anchored.FILE).exists() == bool(passes)


def test_a_run_that_goes_on_reads_what_was_scored(tmp_path):
  score = Scored(0.1)
  for _ in range(2):
    found = table(tmp_path, score)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(np.float32(0.1)))
  assert score.passes == 1


@pytest.mark.parametrize(
  "changed",
  [
    {"base": "other"},
    {"training rows (preferences)": "other"},
    {"tokenizer": "t"},
  ],
)
def test_what_was_made_from_something_else_is_scored_anew(tmp_path, changed):
  table(tmp_path, Scored())
  other = Scored(1.0)
  found = table(tmp_path, other, STANDS_ON | changed)
  assert other.passes == 1
  np.testing.assert_array_equal(found, expected(1.0))
  # It is the file's now.
  np.testing.assert_array_equal(
    table(tmp_path, Scored(2.0), STANDS_ON | changed), expected(1.0)
  )


def cut(content):
  return json.dumps(content)[:-9]


def changed(content):
  content["logprobs"][3][1] += 1.0
  return json.dumps(content)


def shorter(content):
  content["logprobs"] = content["logprobs"][:-1]
  return json.dumps(content)


def ragged(content):
  content["logprobs"][0] = [1.0]
  return json.dumps(content)


@pytest.mark.parametrize("damage", [cut, changed, shorter, ragged])
def test_a_damaged_file_is_scored_anew(tmp_path, damage):
  table(tmp_path, Scored())
  path = tmp_path / anchored.FILE
  path.write_text(damage(json.loads(path.read_text())))
  score = Scored(1.0)
  np.testing.assert_array_equal(table(tmp_path, score), expected(1.0))
  assert score.passes == 1


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
