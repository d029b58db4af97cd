"""How often members of DPO score pairs with their anchor: fakes, counted."""

import json
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from perl_jax import files, sharding
from perl_jax.tasks.evaluation import anchored, so_far
from perl_jax.tasks.training import together

ANCHOR = SimpleNamespace(backbone="b", trainable={}, frozen={})


class Pairs(NamedTuple):
  """A batch of pairs, one of them in each row."""

  index: Any

  def places(self):
    return [(int(i), (k, 0)) for k, i in enumerate(self.index[:, 0])]


def pairs(*index):
  return Pairs(np.array(index)[:, None])


class LogProbs:
  """Says of a pair its index and the negative of it; counts batches."""

  def __init__(self):
    self.calls = 0

  def __call__(self, trainable, frozen, batch):
    self.calls += 1
    return np.stack([batch.index, -batch.index], axis=-1).astype(np.float32)


def inputs_of(train, validation=("v", (4, 5))):
  """Training and held-out pairs, with the names of their fingerprints."""
  digests = (train[0], validation[0])
  sides = "training", "validation"
  return SimpleNamespace(
    train_rows=train[1],
    fingerprints={
      f"{side} rows (preferences)": digest
      for side, digest in zip(sides, digests, strict=True)
    },
    held_out=lambda doing: iter([pairs(*validation[1])]),
    once=lambda doing: iter([pairs(*train[1])]),
  )


@pytest.fixture
def mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def members(count):
  shared = together.Shared(count, {})
  return [together.Member(k, shared) for k in range(count)]


def nothing(name):
  return so_far.NOTHING


def of_member(logprobs, mesh, member, seed, data, steps):
  config = SimpleNamespace(seed=seed, steps=steps, batch_size=2)
  return anchored.make_with_anchor(
    config, anchored.Scoring(logprobs, ANCHOR, data, mesh, member, nothing)
  )


def test_a_batch_is_scored_once_for_the_members_of_its_seed(mesh):
  """In turns; and again where they are not at the same step."""
  logprobs, data = LogProbs(), inputs_of(("t", range(4)))
  made = [
    of_member(logprobs, mesh, member, seed, data, steps=2)
    for member, seed in zip(members(4), (0, 7, 0, 7), strict=True)
  ]

  def score(number, *index):
    found = made[number](pairs(*index)).anchor
    np.testing.assert_array_equal(found[:, 0, 0], index)

  for step in ((0, 1), (2, 3)):
    for number, index in enumerate((step, step[::-1]) * 2):
      score(number, *index)
  assert logprobs.calls == 2 * 2
  score(0, 0, 1)  # one that has to catch up
  score(2, 2, 3)
  assert logprobs.calls == 6


def test_a_run_of_its_own_scores_each_batch(mesh):
  logprobs, data = LogProbs(), inputs_of(("t", range(4)))
  with_anchor = of_member(logprobs, mesh, together.ALONE, 0, data, steps=2)
  for _ in range(2):
    with_anchor(pairs(0, 1))
  assert logprobs.calls == 2


def test_members_of_all_seeds_have_one_anchor(mesh):
  """It scores the same pairs once; others, as of generated rows, by itself."""
  logprobs, found = LogProbs(), []
  rows = ("t", range(4)), ("t", range(4)), ("u", range(4))
  held_out = ("v", (4, 5)), ("v", (4, 5)), ("w", (6, 7))
  for k, member in enumerate(members(3)):
    data = inputs_of(rows[k], held_out[k])
    of_member(logprobs, mesh, member, k, data, steps=4)
    scoring = anchored.Scoring(logprobs, ANCHOR, data, mesh, member, nothing)
    found.append(anchored.score_anchor(scoring))
  assert logprobs.calls == 2 * 2
  for (_, index), scores in zip(held_out, found, strict=True):
    np.testing.assert_array_equal(scores, [index, np.negative(index)])


def test_scores_that_are_there_are_not_computed_again(mesh):
  """The bits are the same, also of numbers that JSON has no word for."""

  class Odd(LogProbs):
    def __call__(self, trainable, frozen, batch):
      found = super().__call__(trainable, frozen, batch)
      odd = np.float32([[[1 / 3, np.nan]], [[-np.inf, 1e-42]]])
      return found + odd[: len(found)]

  logprobs, kept = Odd(), {}
  batches = pairs(4, 5), pairs(7, 6)
  part = so_far.Part({}, kept.update)
  first = anchored.by_pair(logprobs, ANCHOR, iter(batches), mesh, part)
  assert logprobs.calls == 2 and kept.keys() == first.keys() == {4, 5, 6, 7}
  line = files.json_line({str(i): value for i, value in kept.items()})
  there = {int(i): value for i, value in json.loads(line).items() if int(i) < 7}
  part = so_far.Part(there, lambda rows: None)
  again = anchored.by_pair(logprobs, ANCHOR, iter(batches), mesh, part)
  assert logprobs.calls == 3  # the batch of which a pair was missing
  for i in first:
    assert again[i].dtype == first[i].dtype == np.float32
    assert again[i].tobytes() == first[i].tobytes()
