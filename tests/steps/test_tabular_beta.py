"""That beta weighs the KL as it says, for every estimator; see `tabular.py`.

The expected gradients are exact: all groups of two, by their probability.
"""

import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import steps
from perl_jax.steps import rl
from perl_jax.steps.estimator import NAMES
from tests.steps import tabular
from tests.steps.tabular import (
  ANCHOR,
  LENGTH,
  POLICY,
  RESPONSES,
  REWARDS,
  exact_objective,
  grpo_optimum,
  grpo_scores,
  optimum,
  probabilities,
  table_of,
  token_logprobs,
)

PAIRS = RESPONSES[np.array(list(itertools.product(range(16), repeat=2)))]
BETAS = (0.35, 0.6, 0.9)
FROZEN = steps.Frozen({}, {})
EQUAL = np.full_like(REWARDS, 0.7)
# What is left of a gradient where a response is in its own mean.
FACTORS = {"grpo": 0.5, "dr_grpo": 0.5}


@functools.cache
def gradient_of(name):
  """`(table, beta, rewards) -> ` that of the expected loss of a response."""
  estimator = steps.Estimator(name=name, group=2, reduction="sequence")
  loss_fn = steps.policy_loss(None, estimator, temperature=1.0)

  def of_pair(responses, table, beta, rewards):
    logprobs = token_logprobs(table, responses)[None]
    batch = steps.Experience(
      prompts=jnp.zeros((1, 1), jnp.int32),
      prompt_lengths=jnp.ones(1, jnp.int32),
      responses=responses[None],
      response_mask=jnp.ones((1, 2, LENGTH), bool),
      sampled_logprobs=logprobs,
      anchor_logprobs=token_logprobs(ANCHOR, responses)[None],
      rewards=tabular.rewards_of(responses, rewards)[None],
      beta=beta[None],
      policy_logprobs=logprobs,
      values=jnp.zeros_like(logprobs),
    )
    if estimator.needs_measures:
      batch = steps.prepare(estimator, batch)

    def total(policy):
      trainable = {
        "policy": {"table": policy},
        "value": {"values": jnp.zeros(5)},
      }
      return loss_fn(trainable, FROZEN, batch, None)["loss"][0]

    return jax.grad(total)(table)

  @jax.jit
  def expected(table, beta, rewards):
    chances = probabilities(table)
    weights = (chances[:, None] * chances).reshape(-1, 1, 1)
    found = jax.vmap(of_pair, (0, None, None, None))(
      jnp.asarray(PAIRS), table, beta, rewards
    )
    return jnp.sum(weights * found, axis=0) / 2

  def run(table, beta, rewards):
    with mock.patch.object(rl, "roles", tabular.Roles):
      found = expected(
        jnp.asarray(table), jnp.float32(beta), jnp.asarray(rewards)
      )
    return np.asarray(found, float)

  return run


def exact(table, beta, rewards):
  return -np.asarray(jax.grad(exact_objective)(table, beta, rewards), float)


@pytest.mark.parametrize("name", NAMES)
def test_the_closed_form_is_at_rest_for_every_beta(name):
  """At pi*(beta) no response gains; at that of another beta, one does."""
  best = grpo_optimum if name == "grpo" else optimum
  for beta, other in zip(BETAS, BETAS[1:] + BETAS[:1], strict=True):
    table = np.log(table_of(best(beta).reshape(4, 4))).astype(np.float32)
    still = gradient_of(name)(table, beta, REWARDS)
    np.testing.assert_allclose(still, 0.0, atol=2e-5)
    assert np.abs(gradient_of(name)(table, other, REWARDS)).max() > 0.01


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_away_from_it(name, beta):
  """That of -J; of GRPO with scores in deviations in the place of rewards."""
  rewards, found = REWARDS, gradient_of(name)(POLICY, beta, REWARDS)
  if name == "grpo":
    scores = grpo_scores(np.asarray(probabilities(POLICY), float))
    rewards = (scores / FACTORS[name]).astype(np.float32)
  expected = FACTORS.get(name, 1.0) * exact(POLICY, beta, rewards)
  assert np.abs(expected).max() > 0.03
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", (0.001, *BETAS))
@pytest.mark.parametrize("name", NAMES)
def test_without_a_signal_the_kl_pulls_by_beta(name, beta):
  """All rewards are equal: what is left is beta times the gradient of KL."""
  found = gradient_of(name)(POLICY, beta, EQUAL)
  pull = exact(POLICY, 1.0, EQUAL)
  assert np.abs(pull).max() > 0.1
  np.testing.assert_allclose(
    found, beta * FACTORS.get(name, 1.0) * pull, rtol=1e-3, atol=2e-6
  )
