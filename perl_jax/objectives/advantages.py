"""From rewards and KL to per-token returns and advantages.

Actions are the response tokens, the stop token included. A response with no
token has no action: all its entries are 0.
"""

import chex
import jax
import jax.numpy as jnp

from perl_jax.objectives import masked


def last_token(response_mask: jax.Array) -> jax.Array:
  """Index of the last response token.

  Args:
    response_mask: Which tokens are actions, `[B, T]`, bool.

  Returns:
    Index in [0, T), or -1 for a response with no token, `[B]`, int32.

  Raises:
    AssertionError: If the mask is not a boolean matrix.
  """
  chex.assert_rank(response_mask, 2)
  chex.assert_type(response_mask, bool)
  positions = jnp.arange(response_mask.shape[1], dtype=jnp.int32)
  return jnp.max(jnp.where(response_mask, positions, -1), axis=1)


def shape_rewards(
  *,
  sequence_rewards: jax.Array,
  kl: jax.Array,
  response_mask: jax.Array,
  beta: float | jax.Array,
) -> jax.Array:
  """Per-token rewards: the score at the last token, minus KL at each.

  r_t = (1 - beta) R [t is the last response token] - beta kl_t

  Their sum over a response, with k1 as `kl`, is
  (1 - beta) R - beta log(pi(y|x) / pi_anchor(y|x)).

  Args:
    sequence_rewards: Score R of each response, `[B]`, float32. Integers are
      refused: they would truncate the KL.
    kl: KL from the anchor at each token, `[B, T]`, float32. `kl_k1` gives the
      gradient of the reverse KL.
    response_mask: Which tokens are actions, `[B, T]`, bool.
    beta: Weight of the KL, in [0, 1].

  Returns:
    Rewards, `[B, T]`, float32, 0 outside the response.

  Raises:
    ValueError: If beta, given as a number, is outside [0, 1].
    AssertionError: If shapes do not fit, rewards or KL are not float32, or the
      mask is not boolean.

  Reference: Sidahmed et al. 2024, arXiv:2403.10704. The objective is
  E[(1 - beta) R - beta KL]; that KL enters through the reward is our choice.
  """
  chex.assert_rank([sequence_rewards, kl, response_mask], [1, 2, 2])
  chex.assert_equal_shape([kl, response_mask])
  chex.assert_equal_shape_prefix([sequence_rewards, kl], 1)
  chex.assert_type([sequence_rewards, kl], jnp.float32)
  if isinstance(beta, (int, float)) and not 0 <= beta <= 1:
    raise ValueError(
      f"beta must be in [0, 1], got {beta}: the reward is weighted by 1 - beta"
    )
  positions = jnp.arange(kl.shape[1], dtype=jnp.int32)
  is_last = positions == last_token(response_mask)[:, None]
  final = jnp.where(is_last, sequence_rewards[:, None], 0.0)
  return (1.0 - beta) * final - beta * masked.keep(kl, response_mask)


def returns_to_go(
  rewards: jax.Array,
  response_mask: jax.Array,
  discount: float | jax.Array = 1.0,
) -> jax.Array:
  """Discounted sum of this and all later rewards of the response.

  Z_t = sum_{t' >= t} discount^(t' - t) m_t' r_t'

  Args:
    rewards: Per-token rewards, `[B, T]`, float32.
    response_mask: Which tokens are actions, `[B, T]`, bool.
    discount: Per token, in [0, 1]. The paper uses 1.

  Returns:
    Returns Z, `[B, T]`, float32, 0 outside the response.

  Raises:
    AssertionError: If shapes differ, rewards are not float32, or the mask is
      not boolean.

  Reference: Lee et al. 2023, arXiv:2309.00267, appendices F, G.
  """
  chex.assert_rank(rewards, 2)
  chex.assert_type(rewards, jnp.float32)

  def step(later: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = reward + discount * later
    return total, total

  kept = masked.keep(rewards, response_mask)
  _, returns = jax.lax.scan(
    step, jnp.zeros_like(kept[:, 0]), kept.T, reverse=True
  )
  return masked.keep(returns.T, response_mask)


def reinforce_advantages(returns: jax.Array, values: jax.Array) -> jax.Array:
  """How much better the response went than the value model expected.

  A_t = Z_t - stop_gradient(V(s_t))

  Args:
    returns: Z from `returns_to_go`, `[B, T]`, float32.
    values: V of the state before each token, `[B, T]`, float32.

  Returns:
    Advantages, `[B, T]`, float32, with no gradient to the value model.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Lee et al. 2023, arXiv:2309.00267, appendices F, G.
  """
  chex.assert_rank(returns, 2)
  chex.assert_equal_shape([returns, values])
  chex.assert_type([returns, values], jnp.float32)
  return returns - jax.lax.stop_gradient(values)
