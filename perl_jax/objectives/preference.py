"""Losses of reward models: on pairs of responses, and on labelled ones."""

import chex
import jax
import jax.numpy as jnp


def pairwise_preference_loss(
  chosen_rewards: jax.Array, rejected_rewards: jax.Array
) -> jax.Array:
  """Negative log-likelihood that the chosen response wins (Bradley-Terry).

  loss = -log sigmoid(r_chosen - r_rejected)

  Args:
    chosen_rewards: Reward-model scores, `[B]`, float32.
    rejected_rewards: Scores for the same prompts, `[B]`, float32.

  Returns:
    Loss in nats per pair, `[B]`, not reduced.

  Raises:
    AssertionError: If shapes differ or a score is not float32.

  Reference: Stiennon et al. 2020, arXiv:2009.01325, section 3.4.
  """
  chex.assert_equal_shape([chosen_rewards, rejected_rewards])
  chex.assert_rank(chosen_rewards, 1)
  chex.assert_type([chosen_rewards, rejected_rewards], jnp.float32)
  return -jax.nn.log_sigmoid(chosen_rewards - rejected_rewards)


def pointwise_preference_loss(
  rewards: jax.Array, labels: jax.Array
) -> jax.Array:
  """Binary cross-entropy of the label, with the reward as its logit.

  loss = -y log sigmoid(r) - (1 - y) log sigmoid(-r)

  Args:
    rewards: Reward-model scores, `[B]`, float32.
    labels: 1 for a good response, 0 for a bad one, or the share of raters who
      called it good, `[B]`, float32.

  Returns:
    Loss in nats per response, `[B]`, not reduced.

  Raises:
    AssertionError: If shapes differ, or a score or label is not float32.

  Reference: Sidahmed et al. 2024, arXiv:2403.10704.
  """
  chex.assert_equal_shape([rewards, labels])
  chex.assert_rank(rewards, 1)
  chex.assert_type([rewards, labels], jnp.float32)
  good = jax.nn.log_sigmoid(rewards)
  bad = jax.nn.log_sigmoid(-rewards)
  return -labels * good - (1.0 - labels) * bad
