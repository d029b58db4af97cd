"""How far the policy is from the anchor, per token.

k1, k2 and k3 estimate KL(policy || anchor) from tokens that the policy sampled.
With d = log policy(token) - log anchor(token):

  estimator  formula            unbiased value  as a loss, the gradient is of
  k1         d                  yes             0 in expectation
  k2         d^2 / 2            no              KL(policy || anchor)
  k3         exp(-d) - 1 + d    yes             KL(anchor || policy)
  exact      sum over the vocabulary            KL(policy || anchor), per token

In the reward, under REINFORCE, k1 has the gradient of KL(policy || anchor); the
others are biased there: `REFUSED` says why. Nothing is clamped.

As a loss, k2, k3 and exact move a token with the states fixed: how it changes
the KL of later tokens is left out, which k1 in the reward has. The last column
holds for tokens that the policy itself sampled; under an older policy's tokens
it does not.

The estimators treat every entry alone, padding too, where exp(-d) may overflow.
Before one enters a loss, clean both inputs with `masked.keep`.

Reference: Schulman 2020, "Approximating KL Divergence",
http://joschu.net/blog/kl-approx.html.
"""

import chex
import jax
import jax.numpy as jnp

from perl_jax.objectives import language_model

ESTIMATORS = ("k1", "k2", "k3", "exact")
PLACES = ("reward", "loss")
_LEFT_OUT = (
  "the policy gradient leaves out the gradient of the estimate itself, which is"
  " 0 in expectation for k1 alone. Use 'k1' in the reward"
)
# (estimator, place): why not. Every other combination is allowed; k3 in the
# loss too, as is common, though it pulls by KL(anchor || policy).
REFUSED = {
  ("k1", "loss"): (
    "its gradient is 0 in expectation, so that nothing would pull the policy to"
    " the anchor. Use 'k2' in the loss, or 'k1' in the reward"
  ),
  ("k2", "reward"): f"it is biased there, in value too: {_LEFT_OUT}",
  ("k3", "reward"): f"it is biased there: {_LEFT_OUT}",
  ("exact", "reward"): (
    "it is the same for every token that could follow a state, so that it gives"
    f" no gradient to that choice: {_LEFT_OUT}, or 'exact' in the loss"
  ),
}


def require_kl(estimator: str, place: str) -> None:
  """Checks that an estimator has a useful gradient where it is put.

  Args:
    estimator: One of `ESTIMATORS`.
    place: "reward", shaped by it before the advantages, or "loss", added to the
      policy's loss.

  Raises:
    ValueError: A name is unknown, or the two do not go together: it says why
      and what does.
  """
  for name, value, known in (
    ("estimator", estimator, ESTIMATORS),
    ("place", place, PLACES),
  ):
    if value not in known:
      raise ValueError(
        f"KL {name} {value!r} is unknown: choose one of {', '.join(known)}"
      )
  reason = REFUSED.get((estimator, place))
  if reason:
    raise ValueError(f"KL estimator {estimator!r} in the {place}: {reason}")


def kl_k1(policy_logprobs: jax.Array, anchor_logprobs: jax.Array) -> jax.Array:
  """The log-ratio: unbiased, of high variance, often negative.

  k1 = log pi(a) - log pi_anchor(a)

  Args:
    policy_logprobs: log pi of tokens that the policy sampled, `[B, T]`,
      float32.
    anchor_logprobs: log pi_anchor of the same tokens, `[B, T]`, float32.

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
    policy_logprobs: log pi of tokens that the policy sampled, `[B, T]`,
      float32.
    anchor_logprobs: log pi_anchor of the same tokens, `[B, T]`, float32.

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
    policy_logprobs: log pi of tokens that the policy sampled, `[B, T]`,
      float32.
    anchor_logprobs: log pi_anchor of the same tokens, `[B, T]`, float32.

  Returns:
    Nats per token, `[B, T]`, not reduced. Infinite where the anchor is more
    than exp(88) times as likely as the policy.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Schulman 2020, "Approximating KL Divergence".
  """
  log_ratio = _log_ratio(policy_logprobs, anchor_logprobs)
  return jnp.expm1(-log_ratio) + log_ratio


def kl_loss(
  estimator: str, policy_logprobs: jax.Array, anchor_logprobs: jax.Array
) -> jax.Array:
  """The KL as a term of the policy's loss, from log-probs alone.

  loss_t = k2_t or k3_t, with gradient to the policy only

  Averaged over tokens that the policy sampled, the gradient of k2 is that of
  KL(policy || anchor) and that of k3 is that of KL(anchor || policy), each with
  the states fixed. k3 grows with exp(-d) where the policy has dropped a token.

  Args:
    estimator: "k2" or "k3"; "exact" needs all logits: see `exact_kl`.
    policy_logprobs: log pi of tokens that the policy sampled, with gradient,
      `[B, T]`, float32.
    anchor_logprobs: log pi_anchor of the same tokens, `[B, T]`, float32.

  Returns:
    Nats per token, `[B, T]`, not reduced.

  Raises:
    ValueError: If the estimator is unknown or of no use in a loss.
    AssertionError: If shapes differ or an input is not float32.

  Reference: Schulman 2020, "Approximating KL Divergence".
  """
  require_kl(estimator, "loss")
  if estimator == "exact":
    raise ValueError(
      "KL estimator 'exact' is not made of log-probs: call exact_kl with hidden"
      " states, or use 'k2'"
    )
  formula = {"k2": kl_k2, "k3": kl_k3}[estimator]
  return formula(policy_logprobs, jax.lax.stop_gradient(anchor_logprobs))


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
    policy_head, anchor_head: Output projections, `[D, V]`, used and summed as
      the head of `token_logprobs`.
    temperature, softcap: Scalars that `head_logits` applies to the logits of
      both policy and anchor; a softcap of None bounds none.
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
        hidden,
        head.astype(hidden.dtype),
        temperature=temperature,
        softcap=softcap,
      )
    )

  def divergence(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
    policy = logprobs(chunk[0], policy_head)
    anchor = logprobs(chunk[1], anchor_head)
    return jnp.sum(jnp.exp(policy) * (policy - anchor), axis=-1)

  return language_model.map_time_chunks(
    divergence, (policy_hidden, anchor_hidden), chunk_size=chunk_size
  )


def adapt_beta(
  beta: float | jax.Array,
  kl: float | jax.Array,
  *,
  target: float,
  horizon: int,
  batch_size: int,
) -> jax.Array:
  """Weight of the KL for the next update, so that the KL stays near a target.

  e = clip((kl - target) / target, -0.2, 0.2)
  beta' = clip(beta (1 + e batch_size / horizon), 0, 1)

  It is multiplicative: a beta of 0 stays 0.

  Args:
    beta: Weight of the KL now, in (0, 1]; the reward's is 1 - beta.
    kl: Measured on this batch, nats per response, scalar.
    target: KL to hold, nats per response, > 0.
    horizon: Responses in which beta grows by a factor of at most about
      exp(0.2) = 1.22; at least `batch_size`.
    batch_size: Responses in the batch, >= 1.

  Returns:
    The next beta, float32 scalar.

  Raises:
    ValueError: If target, horizon or batch_size is outside its range.

  Reference: Ziegler et al. 2019, arXiv:1909.08593, section 2.2, where
  batch_size / horizon is K_beta = 0.1.
  """
  if not target > 0:
    raise ValueError(
      f"target must be > 0 nats, got {target}; for a fixed beta leave the"
      " controller off"
    )
  if not 1 <= batch_size <= horizon:
    raise ValueError(
      f"horizon must be at least batch_size, got {horizon} and {batch_size}:"
      " beta would swing between updates; 10 times as many are usual"
    )
  error = jnp.clip((jnp.asarray(kl, jnp.float32) - target) / target, -0.2, 0.2)
  factor = 1.0 + error * (batch_size / horizon)
  return jnp.clip(jnp.asarray(beta, jnp.float32) * factor, 0.0, 1.0)


def _log_ratio(
  policy_logprobs: jax.Array, anchor_logprobs: jax.Array
) -> jax.Array:
  chex.assert_equal_shape([policy_logprobs, anchor_logprobs])
  chex.assert_rank(policy_logprobs, 2)
  chex.assert_type([policy_logprobs, anchor_logprobs], jnp.float32)
  return policy_logprobs - anchor_logprobs
