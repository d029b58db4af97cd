"""From rewards and KL to returns and advantages, per token or per response.

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
    discount: Factor per token, in [0, 1]; 1 in arXiv:2403.10704.

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


def gae_advantages(
  *,
  rewards: jax.Array,
  values: jax.Array,
  response_mask: jax.Array,
  discount: float | jax.Array,
  gae_lambda: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation, and the returns that go with it.

  delta_t = r_t + discount V(s_{t+1}) - V(s_t)
  A_t = sum_{t' >= t} (discount gae_lambda)^(t' - t) delta_t'
  Z_t = A_t + V(s_t)

  What follows the last response token is worth 0. With gae_lambda 1, Z is what
  `returns_to_go` gives; with 0, A_t is delta_t alone.

  Args:
    rewards: Per-token rewards, `[B, T]`, float32.
    values: V of the state before each token, `[B, T]`, float32.
    response_mask: Which tokens are actions, `[B, T]`, bool, without gaps.
    discount: Factor per token, in [0, 1].
    gae_lambda: In [0, 1]: how far the rewards are believed over the values.

  Returns:
    Advantages and returns, `[B, T]` each, float32, 0 outside the response and
    with no gradient to the value model.

  Raises:
    ValueError: If discount or gae_lambda, given as a number, is outside [0, 1].
    AssertionError: If shapes differ, an input is not float32, or the mask is
      not boolean.

  Reference: Schulman et al. 2015, arXiv:1506.02438, equation 16.
  """
  chex.assert_rank(rewards, 2)
  chex.assert_equal_shape([rewards, values])
  chex.assert_type([rewards, values], jnp.float32)
  for name, number in (("discount", discount), ("gae_lambda", gae_lambda)):
    if isinstance(number, (int, float)) and not 0 <= number <= 1:
      raise ValueError(
        f"{name} must be in [0, 1], got {number}; 1 leaves later rewards whole"
      )
  rewards = masked.keep(rewards, response_mask)
  values = masked.keep(jax.lax.stop_gradient(values), response_mask)
  after = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  deltas = rewards + discount * after - values
  advantages = returns_to_go(deltas, response_mask, discount * gae_lambda)
  return advantages, advantages + values


def rloo_advantages(returns: jax.Array) -> jax.Array:
  """How much better a response went than the others to the same prompt.

  A_i = R_i - sum_{j != i} R_j / (G - 1)

  Args:
    returns: Return of each of G responses to each of B prompts, `[B, G]`,
      float32: the sum of the response's shaped rewards, so that the KL is in
      before the baseline.

  Returns:
    Advantages, `[B, G]`, float32; exactly 0 in a group of equal returns.

  Raises:
    ValueError: If G < 2: nothing is left to compare with.
    AssertionError: If returns are not a float32 matrix.

  Reference: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for
  free!"; Ahmadian et al. 2024, arXiv:2402.14740.
  """
  size = _group_size(returns, "leave-one-out")
  return _group_centered(returns) * (size / (size - 1))


def grpo_advantages(
  returns: jax.Array, *, normalise: bool, epsilon: float = 1e-4
) -> jax.Array:
  """How much better than its group a response went, in standard deviations.

  A_i = (R_i - mean R) / max(std R, epsilon), or R_i - mean R

  std is the population's, of mean square. Without `normalise` it is Dr. GRPO:
  prompts that nearly all or nearly no responses solve then weigh no more than
  others. R_i is in its own mean, which shrinks A by (G - 1) / G against
  `rloo_advantages` and changes nothing else.

  Args:
    returns: Return of each of G responses to each of B prompts, `[B, G]`,
      float32. With `normalise` without any KL: see `grpo_kl_advantages`.
    normalise: Whether to divide by the group's deviation.
    epsilon: Floor of that deviation, > 0, in units of the returns. Rounding of
      the rewards should be below it, or it is taken for a difference.

  Returns:
    Advantages, `[B, G]`, float32; exactly 0 in a group of equal returns.

  Raises:
    ValueError: If G < 2 or epsilon is not positive.
    AssertionError: If returns are not a float32 matrix.

  Reference: Shao et al. 2024, arXiv:2402.03300, section 4.1; Liu et al. 2025
  (Dr. GRPO), arXiv:2503.20783, section 3.
  """
  _group_size(returns, "group-relative")
  if not epsilon > 0:
    raise ValueError(
      f"epsilon must be > 0, got {epsilon}: a group of equal returns has no"
      " deviation to divide by"
    )
  centered = _group_centered(returns)
  if not normalise:
    return centered
  variance = jnp.mean(jnp.square(centered), axis=1, keepdims=True)
  # The floor is below the root, whose slope at 0 is infinite.
  return centered * jax.lax.rsqrt(jnp.maximum(variance, epsilon**2))


def grpo_kl_advantages(
  *,
  rewards: jax.Array,
  kl: jax.Array,
  beta: float | jax.Array,
  epsilon: float = 1e-4,
) -> jax.Array:
  """GRPO with a KL in the reward that is added after the division.

  A_i = (1 - beta) (R_i - mean R) / max(std R, epsilon) - beta (K_i - mean K)

  GRPO as published has its KL in the loss (k3), where no deviation reaches it.
  In the reward it must stay out of the deviation too: where the rewards of a
  group are equal, the deviation of R - beta K is that of beta K, so that beta
  would cancel and a prompt without a signal would pull to the anchor as hard as
  one with a signal. Added afterwards, the KL has the weight beta for every
  prompt, and k1 keeps the gradient of KL(policy || anchor).

  Args:
    rewards: Reward R of each of G responses to each of B prompts, `[B, G]`,
      float32.
    kl: K, the log-ratio to the anchor summed over each response, `[B, G]`,
      float32; 0 where the KL is a term of the loss.
    beta: Weight of the KL, in [0, 1], or `[B, 1]`.
    epsilon: Floor of the deviation, see `grpo_advantages`.

  Returns:
    Advantages, `[B, G]`, float32.

  Raises:
    ValueError: If G < 2 or epsilon is not positive.
    AssertionError: If shapes differ or an input is not float32.

  Reference: Shao et al. 2024, arXiv:2402.03300, section 4.1.1, where the KL is
  in the loss, "avoiding complicating the calculation" of the advantages.
  """
  chex.assert_equal_shape([rewards, kl])
  scores = grpo_advantages(rewards, normalise=True, epsilon=epsilon)
  pull = grpo_advantages(kl, normalise=False)
  return (1.0 - beta) * scores - beta * pull


def _group_size(returns: jax.Array, what: str) -> int:
  """G of returns `[B, G]`, at least 2."""
  chex.assert_rank(returns, 2)
  chex.assert_type(returns, jnp.float32)
  size = returns.shape[1]
  if size < 2:
    raise ValueError(
      f"{what} advantages compare the responses to a prompt, got {size} of"
      " each: sample a group of at least 2, or use a learned value baseline"
    )
  return size


def _group_centered(returns: jax.Array) -> jax.Array:
  """Returns less their group's mean; equal ones become exactly 0.

  The mean is taken of distances to the group's first: see `masked_var`.
  """
  offsets = returns - jax.lax.stop_gradient(returns[:, :1])
  return offsets - jnp.mean(offsets, axis=1, keepdims=True)
