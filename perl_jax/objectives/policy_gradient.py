"""Losses of the policy and the value model: REINFORCE, and PPO's clipped ones.

The losses treat every entry alone, padding too. Reduce them with `masked_mean`;
if the padding could hold numbers that are not finite, clean the inputs with
`masked.keep` first.
"""

import chex
import jax
import jax.numpy as jnp


def reinforce_loss(*, logprobs: jax.Array, advantages: jax.Array) -> jax.Array:
  """Policy-gradient loss: makes tokens with a positive advantage likelier.

  loss_t = -log pi(a_t | s_t) stop_gradient(A_t)

  Only its gradient means something; its value does not measure progress. Summed
  over a response and averaged over responses sampled from the policy, the
  gradient is that of -E[sum_t r_t].

  Args:
    logprobs: log pi of the sampled tokens, with gradient, `[B, T]`, float32.
    advantages: A_t, `[B, T]`, float32.

  Returns:
    Loss per token, `[B, T]`, not reduced.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Lee et al. 2023, arXiv:2309.00267, appendices F, G.
  """
  chex.assert_rank(logprobs, 2)
  chex.assert_equal_shape([logprobs, advantages])
  chex.assert_type([logprobs, advantages], jnp.float32)
  return -logprobs * jax.lax.stop_gradient(advantages)


def value_loss(*, values: jax.Array, returns: jax.Array) -> jax.Array:
  """Squared error of the value model, with no factor 1/2.

  loss_t = (stop_gradient(Z_t) - V(s_t))^2

  Args:
    values: V of the state before each token, with gradient, `[B, T]`, float32.
    returns: Z from `returns_to_go`, `[B, T]`, float32.

  Returns:
    Loss per token in squared reward, `[B, T]`, not reduced.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Lee et al. 2023, arXiv:2309.00267, appendices F, G.
  """
  chex.assert_rank(values, 2)
  chex.assert_equal_shape([values, returns])
  chex.assert_type([values, returns], jnp.float32)
  return jnp.square(jax.lax.stop_gradient(returns) - values)


def ppo_policy_loss(
  *,
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  clip_low: float,
  clip_high: float,
) -> tuple[jax.Array, jax.Array]:
  """Policy-gradient loss that stops once a token has become likely enough.

  w_t = pi(a_t | s_t) / pi_old(a_t | s_t)
  loss_t = -min(w_t A_t, clip(w_t, 1 - clip_low, 1 + clip_high) A_t)

  Where w is 1, as in the first update on a rollout, the gradient is that of
  `reinforce_loss`.

  Args:
    logprobs: log pi of the sampled tokens, with gradient, `[B, T]`, float32.
    old_logprobs: log pi_old, under the policy that sampled them, computed by
      the same code and at the same temperature, `[B, T]`, float32.
    advantages: A_t, `[B, T]`, float32.
    clip_low: How far below 1 the ratio has a gradient, in [0, 1].
    clip_high: How far above 1, >= 0. More than `clip_low` is "clip-higher".

  Returns:
    Loss per token, `[B, T]`, not reduced; and where it was clipped, `[B, T]`,
    bool: there the gradient is 0.

  Raises:
    ValueError: If a bound is outside its range.
    AssertionError: If shapes differ or an input is not float32.

  Reference: Schulman et al. 2017, arXiv:1707.06347, equation 7; two bounds: Yu
  et al. 2025 (DAPO), arXiv:2503.14476, section 3.1.
  """
  inputs = [logprobs, old_logprobs, advantages]
  chex.assert_rank(logprobs, 2)
  chex.assert_equal_shape(inputs)
  chex.assert_type(inputs, jnp.float32)
  if not 0 <= clip_low <= 1 or not clip_high >= 0:
    raise ValueError(
      "clip_low must be in [0, 1] and clip_high >= 0, got"
      f" {clip_low} and {clip_high}; 0.2 for both is usual"
    )
  advantages = jax.lax.stop_gradient(advantages)
  log_ratio = logprobs - jax.lax.stop_gradient(old_logprobs)
  ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
  above = (advantages > 0) & (ratio > 1 + clip_high)
  below = (advantages < 0) & (ratio < 1 - clip_low)
  clipped = above | below
  # Before exp, not only after: a ratio that overflowed would make the gradient
  # of the branch that is not taken NaN.
  free = jnp.exp(jnp.where(clipped, 0.0, log_ratio))
  bound = jnp.where(above, 1.0 + clip_high, 1.0 - clip_low)
  return -jnp.where(clipped, bound, free) * advantages, clipped


def ppo_value_loss(
  *,
  values: jax.Array,
  old_values: jax.Array,
  returns: jax.Array,
  value_clip: float,
) -> tuple[jax.Array, jax.Array]:
  """Squared error of a value model that may not move far in one rollout.

  C_t = V_old(s_t) + clip(V(s_t) - V_old(s_t), -value_clip, value_clip)
  loss_t = max((Z_t - V(s_t))^2, (Z_t - C_t)^2)

  Like `value_loss` it has no factor 1/2.

  Args:
    values: V of the state before each token, with gradient, `[B, T]`, float32.
    old_values: V when the rollout was made, `[B, T]`, float32.
    returns: Z, `[B, T]`, float32.
    value_clip: In units of the returns, >= 0; 0 turns clipping off.

  Returns:
    loss: Loss per token in squared reward, `[B, T]`, not reduced.
    clipped: Whether C_t is what counts, `[B, T]`, bool; no gradient.

  Raises:
    ValueError: If value_clip is negative.
    AssertionError: If shapes differ or an input is not float32.

  Reference: OpenAI Baselines, `ppo2/model.py`; no paper gives the formula.
  """
  if not value_clip >= 0:
    raise ValueError(
      f"value_clip must be >= 0, got {value_clip}; 0 turns clipping off"
    )
  loss = value_loss(values=values, returns=returns)
  if value_clip == 0:
    return loss, jnp.zeros(loss.shape, bool)
  chex.assert_equal_shape([values, old_values])
  chex.assert_type(old_values, jnp.float32)
  old_values = jax.lax.stop_gradient(old_values)
  bound = old_values + value_clip * jnp.sign(values - old_values)
  bounded = value_loss(values=bound, returns=returns)
  moved_far = jnp.abs(values - old_values) > value_clip
  clipped = moved_far & (bounded > loss)
  return jnp.where(moved_far, jnp.maximum(loss, bounded), loss), clipped
