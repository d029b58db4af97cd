"""The policy gradient where everything is known; see `tabular.py`.

The formulas under test are the project's; sampling, the exact J and its
gradient are not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import advantages, kl, policy_gradient
from tests.steps.tabular import (
  ANCHOR,
  BASELINE,
  BETA,
  POLICY,
  RESPONSES,
  REWARDS,
  VOCAB,
  exact_objective,
  optimum,
  probabilities,
  rewards_of,
  sample,
  states,
  table_of,
  token_logprobs,
)


def losses(
  table, baseline, responses, behaviour, *, beta=BETA, estimator=kl.kl_k1
):
  """Policy and value loss per token, `[B, 2]`, from the project's formulas.

  `behaviour` is the table that sampled the responses, without gradient.
  """
  mask = jnp.ones(responses.shape, bool)
  logprobs = token_logprobs(table, responses)
  shaped = advantages.shape_rewards(
    sequence_rewards=rewards_of(responses),
    kl=estimator(
      token_logprobs(behaviour, responses), token_logprobs(ANCHOR, responses)
    ),
    response_mask=mask,
    beta=beta,
  )
  returns = advantages.returns_to_go(shaped, mask)
  values = jnp.asarray(baseline)[states(responses)]
  policy_loss = policy_gradient.reinforce_loss(
    logprobs=logprobs,
    advantages=advantages.reinforce_advantages(returns, values),
  )
  return policy_loss, policy_gradient.value_loss(values=values, returns=returns)


def test_closed_form_is_the_optimum():
  """No other table does better: the gradient of J is 0 at pi*, and J lower."""
  best = optimum().reshape(VOCAB, VOCAB)
  table = np.log(table_of(best)).astype(np.float32)
  gradient = jax.grad(exact_objective)(table)
  assert np.abs(gradient).max() < 1e-5
  rng = np.random.default_rng(0)
  for _ in range(20):
    moved = table + 0.3 * rng.normal(size=table.shape).astype(np.float32)
    assert exact_objective(moved) < exact_objective(table)


@functools.partial(jax.jit, static_argnames=("beta", "estimator"))
def estimates(baseline, beta=BETA, estimator=kl.kl_k1):
  """400 independent estimates of the gradient of -J, `[400, 5, 4]`."""

  def estimate(key):
    responses = sample(POLICY, key, 512)

    def mean_loss(table):
      policy, _ = losses(
        table, baseline, responses, POLICY, beta=beta, estimator=estimator
      )
      return jnp.sum(policy) / len(responses)

    return jax.grad(mean_loss)(jnp.asarray(POLICY))

  return jax.lax.map(estimate, jax.random.split(jax.random.key(1), 400))


def z_scores(found, expected):
  """Distance of the mean from what is expected, in standard errors."""
  found = np.asarray(found, float)
  error = found.std(axis=0, ddof=1) / len(found) ** 0.5
  return (found.mean(axis=0) - np.asarray(expected, float)) / error


@pytest.mark.parametrize("baseline", [np.zeros_like(BASELINE), BASELINE])
def test_averaged_gradient_is_the_analytic_one(baseline):
  """20 z-scores of 204,800 responses: below 4, with mean square about 1."""
  scores = z_scores(estimates(baseline), -jax.grad(exact_objective)(POLICY))
  assert np.abs(scores).max() < 4.0, scores
  assert 0.2 < np.mean(scores**2) < 2.5, scores


def test_averaged_gradient_would_show_a_wrong_objective():
  """The same samples tell beta, the sign of the KL and k3 apart from J."""
  found = estimates(np.zeros_like(BASELINE))
  for wrong in (
    -jax.grad(exact_objective)(POLICY, 0.0),
    -jax.grad(exact_objective)(POLICY, BETA + 0.05),
    jax.grad(exact_objective)(POLICY),
  ):
    assert np.abs(z_scores(found, wrong)).max() > 8.0
  # k3 is an unbiased value, but in the reward its gradient is another.
  biased = estimates(np.zeros_like(BASELINE), estimator=kl.kl_k3)
  scores = z_scores(biased, -jax.grad(exact_objective)(POLICY))
  assert np.abs(scores).max() > 8.0


def test_baseline_takes_variance_away():
  """The trained values as baseline: less noise, the same mean."""
  none = np.asarray(estimates(np.zeros_like(BASELINE)))
  behaviour = probabilities(POLICY).reshape(VOCAB, VOCAB)
  gain = (1.0 - BETA) * REWARDS - BETA * (
    token_logprobs(POLICY, RESPONSES) - token_logprobs(ANCHOR, RESPONSES)
  ).sum(axis=1)
  expected = float(jnp.sum(behaviour.ravel() * gain))
  good = np.asarray(estimates(np.full_like(BASELINE, expected)))
  assert good.var(axis=0).sum() < none.var(axis=0).sum()
