"""The RL loss of policy and value model on rollouts, for every estimator."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import advantages, masked, policy_gradient
from perl_jax.objectives import kl as kl_lib
from perl_jax.steps.estimator import Estimator, Experience, prepare
from perl_jax.steps.train import LossFn, masked_sums

# Of log-probs of policy and anchor, which may come from two programs; and of
# rewards, as a share of the largest reward of a prompt: a device that has other
# rows beside them may round each term of a score otherwise.
_ROUNDING = 1e-6
_REWARD_ROUNDING = 1e-5


class Frozen(NamedTuple):
  """What an RL update reads and does not change.

  Attributes:
    base: Parameters of the backbone; empty with full tuning.
    anchor: The anchor's tree, for `kl="exact"`; empty otherwise.
  """

  base: params_lib.Params
  anchor: params_lib.Params


class _Tokens(NamedTuple):
  """Per-token arrays of an experience, `[B * G, T]`, 0 where masked."""

  mask: jax.Array
  sampled: jax.Array
  anchor: jax.Array
  old: jax.Array
  advantages: jax.Array
  returns: jax.Array
  old_values: jax.Array
  beta: jax.Array


def policy_loss(
  backbone: roles.Backbone, estimator: Estimator, *, temperature: float
) -> LossFn:
  """One update on an `Experience`, per token; `frozen` is a `Frozen`.

  loss_t = policy_t + value_coef value_t + beta kl_t - entropy_coef H_t

  policy_t  -log pi_t stopgrad(A_t), or clipped (`ppo_policy_loss`)
  value_t   (Z_t - V_t)^2, with a value model
  kl_t      k2, k3 or exact, with KL in the loss
  H_t       entropy of pi at token t

  With one update for each rollout, log-probs, values and advantages are
  computed in this same pass: the ratio to the policy that sampled is exactly 1.

  Args:
    backbone: Model and adapter shape.
    estimator: Static choices of the update.
    temperature: Sampling temperature of the rollout.

  Reference: Sidahmed et al. 2024, arXiv:2403.10704, section 3; Lee et al. 2023,
  arXiv:2309.00267, appendix F; the functions in `objectives` cite the others.
  """

  def loss_fn(trainable, frozen: Frozen, batch: Experience, key):
    del key  # dropout is off: log-probs must be those of the sampler
    group, length = batch.responses.shape[1:]
    policy = params_lib.combine(trainable["policy"], frozen.base)
    sequence = roles.with_response(
      batch.prompts,
      batch.prompt_lengths,
      batch.responses,
      batch.response_mask,
      group=group,
    )
    shape = {"response_len": length, "group": group}
    scores = roles.response_logprobs(
      backbone,
      policy,
      sequence,
      temperature=temperature,
      entropy=True,
      **shape,
    )
    values = jnp.zeros_like(scores.logprobs)
    if estimator.uses_value:
      value = params_lib.combine(trainable["value"], frozen.base)
      values = roles.response_values(backbone, value, sequence, **shape)
    if not estimator.needs_measures:
      whole = batch.response_mask.shape
      batch = prepare(
        estimator,
        batch._replace(
          policy_logprobs=scores.logprobs.reshape(whole),
          values=values.reshape(whole),
        ),
      )
    tokens = _tokens(batch, values)
    terms, fractions = _terms(estimator, scores, values, tokens)
    if estimator.kl_place == "loss":
      if estimator.kl == "exact":
        anchor = params_lib.combine(frozen.anchor, frozen.base)
        kl = roles.response_kl(
          backbone, policy, anchor, sequence, temperature=temperature, **shape
        )
      else:
        kl = _sampled_kl(estimator.kl, scores.logprobs, tokens)
      terms["kl_loss"] = tokens.beta, kl
    found = _sums(estimator, terms, fractions, tokens.mask)
    return found | _measures(estimator, scores, values, tokens, batch)

  return loss_fn


def _sums(estimator, terms, fractions, mask):
  """Sums of the loss, of each of its terms, and of what was clipped."""
  found = {k: masked_sums(term, mask) for k, (_, term) in terms.items()}
  loss = sum(
    weight * masked.keep(term, mask) for weight, term in terms.values()
  )
  found["loss"] = _reduced(estimator.reduction, loss, mask)
  for name, clipped in fractions.items():
    found[name] = masked_sums(clipped.astype(jnp.float32), mask)
  return found


def _tokens(batch: Experience, values: jax.Array) -> _Tokens:
  """The arrays of a batch as rows of tokens; no gradient flows into them."""
  mask = batch.response_mask
  old_values = values if batch.values is None else batch.values
  arrays = (
    batch.sampled_logprobs,
    batch.anchor_logprobs,
    batch.policy_logprobs,
    batch.advantages,
    batch.returns,
    old_values,
  )
  rows = mask.reshape(-1, mask.shape[-1])
  kept = [
    masked.keep(jax.lax.stop_gradient(a).reshape(rows.shape), rows)
    for a in arrays
  ]
  return _Tokens(rows, *kept, jnp.repeat(batch.beta, mask.shape[1])[:, None])


def _terms(estimator, scores, values, tokens):
  """{"policy_loss": (weight, term), ...}, and where each was clipped."""
  logprobs = masked.keep(scores.logprobs, tokens.mask)
  clipped = jnp.zeros_like(tokens.mask)
  if estimator.clipped:
    loss, clipped = policy_gradient.ppo_policy_loss(
      logprobs=logprobs,
      old_logprobs=tokens.old,
      advantages=tokens.advantages,
      clip_low=estimator.clip_low,
      clip_high=estimator.clip_high,
    )
  else:
    loss = policy_gradient.reinforce_loss(
      logprobs=logprobs, advantages=tokens.advantages
    )
  terms, fractions = {"policy_loss": (1.0, loss)}, {"clip_fraction": clipped}
  if estimator.uses_value:
    value_loss, far = policy_gradient.ppo_value_loss(
      values=masked.keep(values, tokens.mask),
      old_values=tokens.old_values,
      returns=tokens.returns,
      value_clip=estimator.value_clip,
    )
    terms["value_loss"] = estimator.value_coef, value_loss
    if estimator.value_clip:
      fractions["value_clip_fraction"] = far
  if estimator.entropy_coef:
    terms["entropy_loss"] = estimator.entropy_coef, -scores.entropy
  return terms, fractions


def _sampled_kl(name: str, logprobs: jax.Array, tokens: _Tokens) -> jax.Array:
  """KL to the anchor at each sampled token, `[B * G, T]`, by "k2" or "k3"."""
  # Cleaned first: exp of a padding token's log-ratio may overflow.
  logprobs = masked.keep(logprobs, tokens.mask)
  return kl_lib.kl_loss(name, logprobs, tokens.anchor)


def _reduced(reduction: str, loss: jax.Array, mask: jax.Array):
  """(sum, count) of token losses; see `Estimator.reduction`."""
  responses = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.float32)
  if reduction == "sequence_mean":
    return jnp.sum(masked.masked_mean(loss, mask, axis=1)), responses
  total = masked.masked_sum(loss, mask)
  if reduction == "sequence":
    return total, responses
  return total, jnp.sum(mask, dtype=jnp.float32)


def _measures(estimator, scores, values, tokens, batch):
  """Metrics of the rollout and the update: sums and counts, without gradient.

  KL and objective are those of the policy that sampled. `return_square`,
  `residual` and `residual_square` give the explained variance over a whole
  batch. `equal_rewards` and `signal` are about more than rounding, so that they
  are the same on every mesh; see `reward_tolerance` and `_has_signal`.
  """
  mask = tokens.mask
  some = jnp.any(mask, axis=1)
  log_ratio = kl_lib.kl_k1(tokens.old, tokens.anchor)
  kl = jnp.sum(log_ratio, axis=1)
  rewards = batch.rewards.reshape(-1)
  beta = tokens.beta[:, 0]
  logprobs = masked.keep(scores.logprobs, mask)
  found = {
    "kl": masked_sums(kl, some),
    "kl_per_token": masked_sums(log_ratio, mask),
    "kl_k3": masked_sums(kl_lib.kl_k3(tokens.old, tokens.anchor), mask),
    "objective": masked_sums((1 - beta) * rewards - beta * kl, some),
    "entropy": masked_sums(scores.entropy, mask),
    "ratio": masked_sums(jnp.exp(logprobs - tokens.old), mask),
    # Of the policy that sampled to the one that is updated.
    "approx_kl": masked_sums(kl_lib.kl_k3(tokens.old, logprobs), mask),
    "advantage": masked_sums(tokens.advantages, mask),
    "sampler_difference": masked_sums(
      jnp.abs(tokens.old - tokens.sampled), mask
    ),
  }
  if estimator.group > 1:
    spread = jnp.ptp(batch.rewards, axis=1)
    equal = spread <= reward_tolerance(batch.rewards)
    prompts = jnp.any(batch.response_mask, axis=(1, 2))
    found["equal_rewards"] = masked_sums(equal.astype(jnp.float32), prompts)
  if estimator.uses_value:
    residual = tokens.returns - tokens.old_values
    found |= {
      "value": masked_sums(values, mask),
      "return": masked_sums(tokens.returns, mask),
      "return_square": masked_sums(jnp.square(tokens.returns), mask),
      "residual": masked_sums(residual, mask),
      "residual_square": masked_sums(jnp.square(residual), mask),
    }
  signal = _has_signal(
    estimator, tokens, batch, kl.reshape(batch.rewards.shape)
  )
  found["signal"] = masked_sums(signal.astype(jnp.float32), mask)
  return jax.lax.stop_gradient(found)


def reward_tolerance(rewards: jax.Array) -> jax.Array:
  """Differences between the rewards of a prompt that may be rounding, `[B]`.

  1e-6 + 1e-5 max_i |R_i|

  Args:
    rewards: Rewards of G responses to each of B prompts, `[B, G]`, float32.
  """
  largest = jnp.max(jnp.abs(rewards), axis=1)
  return _ROUNDING + _REWARD_ROUNDING * largest


def _has_signal(
  estimator: Estimator, tokens: _Tokens, batch: Experience, kl: jax.Array
) -> jax.Array:
  """Tokens from which something can be learned beside rounding, `[B * G, T]`.

  With a value model    |Z_t - V_t| > tol
  without               (1 - beta) |R_i - mean R| > tol, or, with KL in the
                        reward, beta |K_i - mean K| > 1e-6

  where tol is `reward_tolerance`. That is the advantage before it is divided by
  a deviation, which for equal rewards is one of rounding alone. Where no token
  has a signal, a gradient of 0 is right.

  Args:
    estimator: Static choices of the update.
    tokens: Per-token arrays of the batch.
    batch: The batch.
    kl: K, the log-ratio to the anchor summed over each response, `[B, G]`.
  """
  tolerance = reward_tolerance(batch.rewards)[:, None]
  if estimator.uses_value:
    tolerance = jnp.repeat(tolerance, estimator.group, axis=0)
    return jnp.abs(tokens.returns - tokens.old_values) > tolerance
  beta = batch.beta[:, None]
  off_mean = functools.partial(advantages.grpo_advantages, normalise=False)
  signal = (1 - beta) * jnp.abs(off_mean(batch.rewards)) > tolerance
  if estimator.kl_place == "reward":
    signal |= beta * jnp.abs(off_mean(kl)) > _ROUNDING
  return jnp.broadcast_to(signal.reshape(-1, 1), tokens.mask.shape)
