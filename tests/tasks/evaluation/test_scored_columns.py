"""Responses are evaluated on their own length, not on all the room they had."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.rollouts import rewards
from tests.tasks.evaluation.test_policy import (
  BACKBONE,
  ROWS,
  SAMPLING,
  Words,
  batches,
  checker,
  mesh,
  role,
)

ROOM = SAMPLING.response_len
# The same formula in two compiled programs: float32 reassociation.
ACROSS_PROGRAMS = dict(rel=1e-5, abs=1e-5)


@functools.cache
def engine(group=1):
  spec = dataclasses.replace(SAMPLING, group=group)
  return engine_lib.Engine(BACKBONE, spec, role(3, head=True))


class Columns:
  """An engine with prepared lengths of responses, and what it is asked.

  Responses end before a column; those of rows that only fill up a batch do not.
  """

  def __init__(self, of, buckets, longest):
    self.engine = copy.copy(of)
    self.engine.buckets = buckets
    self.asked = {"logprobs": [], "rewards": []}
    self.lengths = []
    self._sample, self._longest = of.sample, longest
    self.engine.sample = self._cut
    for name in self.asked:
      setattr(self.engine, name, self._noted(name, getattr(of, name)))

  def _cut(self, *args):
    samples = self._sample(*args)
    group = self.engine.spec.group
    fills_up = jnp.repeat(args[4] < 0, group)[:, None]
    mask = samples.mask & ((jnp.arange(ROOM) < self._longest) | fills_up)
    self.lengths.append(int(mask.sum(axis=1, where=~fills_up).max()))
    return samples._replace(mask=mask)

  def _noted(self, name, function):
    def call(*args):
      self.asked[name].append(tuple(array.shape for array in args[2:]))
      return function(*args)

    return call

  def evaluate(self, policy, anchor):
    """(metrics, rows) of five prompts, in two batches."""
    found = policy_evaluation.PolicyEvaluator(
      self.engine,
      mesh=mesh(),
      batches=batches,
      rows=ROWS,
      tokenization=Words(),
      checker=checker,
      key=jax.random.key(0),
    )
    reward = rewards.Rewarder(role(3, head=True), self.engine.rewards, None)
    return found(policy, anchor, reward)


@pytest.mark.parametrize(
  ("longest", "buckets"),
  [(12, (12,)), (48, (24, 48)), (64, (16, 32, 64)), (1, (1,))],
)
def test_lengths_are_those_that_training_has_by_default(longest, buckets):
  spec = dataclasses.replace(SAMPLING, response_len=longest)
  assert engine_lib.Engine(BACKBONE, spec).buckets == buckets


@pytest.mark.parametrize(("longest", "room"), [(1, 2), (2, 2), (3, 4), (5, 6)])
def test_all_that_is_computed_has_the_columns_of_the_longest(longest, room):
  """Policy, anchor and reward alike; rows that fill up a batch do not count."""
  cut = Columns(engine(), (2, 4, ROOM), longest)
  whole = Columns(engine(), (ROOM,), longest)
  metrics, rows = cut.evaluate(role(2), role(1))
  assert max(cut.lengths) == longest
  rooms = [next(n for n in (2, 4, ROOM) if n >= k) for k in cut.lengths]
  assert max(rooms) == room
  shapes = [((4, 3), (4,), (4, n), (4, n)) for n in rooms]
  assert cut.asked["rewards"] == shapes
  assert cut.asked["logprobs"] == [shape for shape in shapes for _ in range(2)]
  expected, expected_rows = whole.evaluate(role(2), role(1))
  assert {n for *_, (_, n) in whole.asked["rewards"]} == {ROOM}
  close = ("kl", "kl_per_token", "entropy", "reward")
  for found, wanted in [(metrics, expected), *zip(rows, expected_rows)]:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
      if name in close:
        value = pytest.approx(value, **ACROSS_PROGRAMS)
      assert found[name] == value, name


@pytest.mark.parametrize("longest", [2, 3])
def test_a_policy_that_is_its_anchor_has_kl_0_on_any_length(longest):
  equal = dataclasses.replace(role(1))  # else nothing would be compared
  cut = Columns(engine(), (2, 4, ROOM), longest)
  metrics, rows = cut.evaluate(equal, role(1))
  assert metrics["kl"] == 0.0 and all(row["kl"] == 0.0 for row in rows)
  assert len(cut.asked["logprobs"]) == 2 * len(cut.lengths)
  assert cut.evaluate(role(2), role(1))[0]["kl"] != 0.0


def test_responses_to_one_prompt_share_it():
  """Log-probs and scores are those of rows with a prompt of their own."""
  cut = Columns(engine(group=2), (2, 4, ROOM), 3)
  metrics, rows = cut.evaluate(role(2), role(1))
  assert [row["row"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  assert cut.asked["rewards"] == [((4, 3), (4,), (8, 4), (8, 4))] * 2
  assert metrics["kl"] != 0.0
  for row in rows:
    ids = [int(i) for i in row["response"].split()]
    tokens = np.zeros((1, ROOM), np.int32)
    tokens[0, : len(ids)] = ids
    mask = np.arange(ROOM)[None] < len(ids)
    prompt = next(
      batch.tokens[[list(batch.index).index(row["row"])]]
      for batch in batches()
      if row["row"] in batch.index
    )
    args = prompt, np.array([3], np.int32), tokens, mask
    (policy, entropy), (anchor, _), score = alone(args)
    kl = float((policy - anchor).sum())
    assert row["kl"] == pytest.approx(kl, rel=1e-4, abs=1e-5)
    mean = float(entropy.sum()) / len(ids)
    assert row["entropy"] == pytest.approx(mean, rel=1e-4)
    assert row["reward"] == pytest.approx(float(score[0]), rel=1e-4, abs=1e-5)


def alone(args):
  """What an evaluation says of one response to one prompt."""
  of = engine()
  policy, anchor, reward = role(2), role(1), role(3, head=True)
  return (
    of.logprobs(policy.trainable, policy.frozen, *args),
    of.logprobs(anchor.trainable, anchor.frozen, *args),
    of.rewards(reward.trainable, reward.frozen, *args),
  )
