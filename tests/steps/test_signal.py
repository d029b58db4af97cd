"""`equal_rewards` and `signal`: counted by hand, with rewards that are rounded.

A score is a sum, and a device that computes other rows beside it may round it
otherwise. Rewards that differ by no more are equal on every mesh.
"""

from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import steps
from perl_jax.steps import rl
from tests.steps import tabular
from tests.steps.tabular import ANCHOR, LENGTH, POLICY, VOCAB, token_logprobs

# A prompt a line; what differs by less than 1e-6 + 1e-5 max |R| is equal.
REWARDS = np.array(
  [
    [100.0, 100.0004, 99.9997, 100.0],  # equal: by less than 1e-3
    [100.0, 100.0, 100.0, 100.01],
    [3e-7, -3e-7, 0.0, 1e-7],  # equal: by less than 1e-6
    [0.0, 0.0, 3e-6, 0.0],
    [-20.0, -20.0001, 0.0, -20.0],
    [0.25, 0.25, 0.25, 0.25],
    [1.0, 0.0, 9.0, 4.0],  # a prompt that only fills the batch
  ],
  np.float32,
)
EQUAL = [True, False, True, False, False, True, None]
SHAPE = (*REWARDS.shape, LENGTH)
MASK = np.ones(SHAPE, bool)
MASK[::2, 1, 1] = False  # responses of one token
MASK[-1] = False


@pytest.fixture(autouse=True)
def on_the_table():
  with mock.patch.object(rl, "roles", tabular.Roles):
    yield


def counted(estimator, beta, values):
  """(signal, equal_rewards) of the loss, and arrays for a count by hand."""
  rng = np.random.default_rng(0)
  responses = rng.integers(0, VOCAB, SHAPE).astype(np.int32)
  rows = responses.reshape(-1, LENGTH)
  logprobs = token_logprobs(jnp.asarray(POLICY), rows).reshape(SHAPE)
  anchor = token_logprobs(jnp.asarray(ANCHOR), rows).reshape(SHAPE)
  states = tabular.states(rows)
  trainable = {
    "policy": {"table": jnp.asarray(POLICY)},
    "value": {"values": jnp.asarray(values, jnp.float32)},
  }
  batch = steps.Experience(
    prompts=jnp.zeros((SHAPE[0], 1), jnp.int32),
    prompt_lengths=jnp.ones(SHAPE[0], jnp.int32),
    responses=responses,
    response_mask=jnp.asarray(MASK),
    sampled_logprobs=logprobs,
    anchor_logprobs=anchor,
    rewards=jnp.asarray(REWARDS),
    beta=jnp.full(SHAPE[0], beta, jnp.float32),
    policy_logprobs=logprobs,
    values=trainable["value"]["values"][states].reshape(SHAPE),
  )
  if estimator.needs_measures:
    batch = steps.prepare(estimator, batch)
  loss = steps.policy_loss(None, estimator, temperature=1.0)
  found = loss(trainable, steps.Frozen({}, {}), batch, None)
  ratio = np.asarray(logprobs, float) - np.asarray(anchor, float)
  return found, ratio, np.asarray(values)[np.asarray(states)].reshape(SHAPE)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("place", ["reward", "loss"])
@pytest.mark.parametrize("name", steps.estimator.NAMES)
def test_signal_is_what_a_loop_counts(name, place, beta):
  estimator = steps.Estimator(
    name=name,
    group=4,
    kl_place=place,
    kl="k1" if place == "reward" else "k3",
  )
  values = np.zeros(1 + VOCAB)
  values[0], values[2] = 100.0, 3e-6  # of the empty response, and after token 1
  found, ratio, values = counted(estimator, beta, values)
  in_reward = beta if place == "reward" else 0.0
  signal = 0
  for b, rewards in enumerate(REWARDS.astype(float)):
    tolerance = 1e-6 + 1e-5 * max(abs(r) for r in rewards)
    kl = [sum(ratio[b, g, MASK[b, g]]) for g in range(4)]
    for g in range(4):
      for t in range(LENGTH):
        if not MASK[b, g, t]:
          continue
        if estimator.uses_value:
          later = sum(ratio[b, g, s] for s in range(t, LENGTH) if MASK[b, g, s])
          error = (1 - beta) * rewards[g] - in_reward * later - values[b, g, t]
          signal += abs(error) > tolerance
        else:
          off = (1 - beta) * abs(rewards[g] - sum(rewards) / 4)
          pull = in_reward * abs(kl[g] - sum(kl) / 4)
          signal += off > tolerance or pull > 1e-6
  assert found["signal"] == (signal, MASK.sum())
  assert 0 < signal < MASK.sum() or beta
  equal = [prompt for prompt in EQUAL if prompt is not None]
  assert found["equal_rewards"] == (sum(equal), len(equal))


def test_tolerance_is_of_each_prompt():
  found = np.asarray(rl.reward_tolerance(jnp.asarray(REWARDS)))
  for rewards, tolerance, equal in zip(REWARDS, found, EQUAL, strict=True):
    expected = 1e-6 + 1e-5 * max(abs(float(r)) for r in rewards)
    assert tolerance == pytest.approx(expected)
    if equal is not None:
      assert (rewards.max() - rewards.min() <= tolerance) == equal
