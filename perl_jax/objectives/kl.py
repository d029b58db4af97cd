"""How far the policy is from the anchor, per token.

k1, k2 and k3 estimate KL(policy || anchor) from tokens that the policy sampled.
With d = log policy(token) - log anchor(token):

  estimator  formula            unbiased value  as a loss, the gradient is of
  k1         d                  yes             0 in expectation
  k2         d^2 / 2            no              KL(policy || anchor)
  k3         exp(-d) - 1 + d    yes             KL(anchor || policy)
  exact      sum over the vocabulary            KL(policy || anchor), per token

In the reward, under REINFORCE, k1 has the gradient of KL(policy || anchor); the
others are biased there. Nothing is clamped.

The estimators treat every entry alone, padding too, where exp(-d) may overflow.
Before one enters a loss, clean both inputs with `masked.keep`.

Reference: Schulman 2020, "Approximating KL Divergence",
http://joschu.net/blog/kl-approx.html.
"""

import chex
import jax
import jax.numpy as jnp

from perl_jax.objectives import language_model


def kl_k1(policy_logprobs: jax.Array, anchor_logprobs: jax.Array) -> jax.Array:
  """The log-ratio: unbiased, of high variance, often negative.

  k1 = log pi(a) - log pi_anchor(a)

  Args:
    policy_logprobs: Of tokens sampled from the policy, `[B, T]`, float32.
    anchor_logprobs: Of the same tokens, `[B, T]`, float32.

  Returns:
    Nats per token, `[B, T]`, not reduced.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Schulman 2020, "Approximating KL Divergence".
  """
  return _log_ratio(policy_logprobs, anchor_logprobs)


def kl_k2(policy_logprobs: jax.Array, anchor_logprobs: jax.Array) -> jax.Array:
  """Half the squared log-ratio: never negative, low variance, biased.

  k2 = (log pi(a) - log pi_anchor(a))^2 / 2

  Args:
    policy_logprobs: Of tokens sampled from the policy, `[B, T]`, float32.
    anchor_logprobs: Of the same tokens, `[B, T]`, float32.

  Returns:
    Nats per token, `[B, T]`, not reduced.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Schulman 2020, "Approximating KL Divergence".
  """
  return 0.5 * jnp.square(_log_ratio(policy_logprobs, anchor_logprobs))


def kl_k3(policy_logprobs: jax.Array, anchor_logprobs: jax.Array) -> jax.Array:
  """The log-ratio with a control variate: never negative, unbiased.

  k3 = pi_anchor(a) / pi(a) - 1 - log(pi_anchor(a) / pi(a))

  Args:
    policy_logprobs: Of tokens sampled from the policy, `[B, T]`, float32.
    anchor_logprobs: Of the same tokens, `[B, T]`, float32.

  Returns:
    Nats per token, `[B, T]`, not reduced. Infinite where the anchor is more
    than exp(88) times as likely as the policy.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Schulman 2020, "Approximating KL Divergence".
  """
  log_ratio = _log_ratio(policy_logprobs, anchor_logprobs)
  return jnp.expm1(-log_ratio) + log_ratio


def exact_kl(
  *,
  policy_hidden: jax.Array,
  policy_head: jax.Array,
  anchor_hidden: jax.Array,
  anchor_head: jax.Array,
  temperature: float = 1.0,
  softcap: float | None = None,
  chunk_size: int = 512,
) -> jax.Array:
  """KL(policy || anchor) of the next-token distributions, not an estimate.

  kl[b, t] = sum_v p[v] (log p[v] - log q[v])
  p = softmax(head_logits(policy)),  q = softmax(head_logits(anchor))

  Summed over sampled tokens it estimates the sequence KL without bias, but its
  own gradient leaves out how earlier tokens change later states.

  Args:
    policy_hidden, anchor_hidden: Final hidden states, `[B, T, D]`.
    policy_head, anchor_head: Output projections, `[D, V]`.
    temperature, softcap: As in `head_logits`, the same for both.
    chunk_size: Tokens whose logits exist at once; see `token_logprobs`.

  Returns:
    Nats per token, `[B, T]`, float32, not reduced.

  Raises:
    ValueError: If temperature, softcap or chunk_size is not positive.
    AssertionError: If shapes do not fit.
  """
  chex.assert_equal_shape_prefix([policy_hidden, anchor_hidden], 2)
  chex.assert_axis_dimension(anchor_head, 1, policy_head.shape[1])

  def logprobs(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(
      language_model.head_logits(
        hidden, head, temperature=temperature, softcap=softcap
      )
    )

  def divergence(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
    policy = logprobs(chunk[0], policy_head)
    anchor = logprobs(chunk[1], anchor_head)
    return jnp.sum(jnp.exp(policy) * (policy - anchor), axis=-1)

  return language_model.map_time_chunks(
    divergence, (policy_hidden, anchor_hidden), chunk_size=chunk_size
  )


def _log_ratio(
  policy_logprobs: jax.Array, anchor_logprobs: jax.Array
) -> jax.Array:
  chex.assert_equal_shape([policy_logprobs, anchor_logprobs])
  chex.assert_rank(policy_logprobs, 2)
  chex.assert_type([policy_logprobs, anchor_logprobs], jnp.float32)
  return policy_logprobs - anchor_logprobs
