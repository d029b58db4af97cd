"""Pure training steps: reduce, differentiate by trainable only, update.

A loss function returns sums and counts, never means: the step divides the sum
over all microbatches by the count over all microbatches, so that the result is
the same however a batch is cut.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import advantages as advantages_lib
from perl_jax.objectives import (
  language_model,
  masked,
  policy_gradient,
  preference,
)

# {"name": (sum, count)}; the key "loss" is what is minimised.
Sums = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[..., Sums]


class TrainState(NamedTuple):
  """Everything that a step changes.

  Attributes:
    trainable: Parameters in gradients, optimiser and checkpoints.
    opt_state: Optax state over `trainable`.
    step: Updates so far, int32 scalar.
  """

  trainable: Any
  opt_state: Any
  step: jax.Array


def init_state(
  trainable: params_lib.Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """State before the first step."""
  return TrainState(
    trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32)
  )


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  microbatches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns `step(state, frozen, batch, key) -> (state, metrics)`.

  Args:
    loss_fn: `(trainable, frozen, batch, key) -> Sums`; "loss" is required.
    optimizer: Optax transformation over the trainable tree.
    microbatches: The batch is cut into this many equal parts, whose gradients
      are added one after the other.

  The gradient is d(sum of losses) / d(trainable), divided by the count of
  "loss" over the whole batch. `metrics` holds each mean, the gradient's and the
  update's global norm.
  """

  def sums_and_grads(trainable, frozen, batch, key):
    def total(trainable):
      sums = loss_fn(trainable, frozen, batch, key)
      return sums["loss"][0], sums

    (_, sums), grads = jax.value_and_grad(total, has_aux=True)(trainable)
    return sums, grads

  def accumulate(trainable, frozen, batch, key):
    if microbatches == 1:
      return sums_and_grads(trainable, frozen, batch, key)
    # Strided, not contiguous: each part spreads over the batch's devices.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1),
      batch,
    )
    keys = jax.random.split(key, microbatches)

    def add(total, part):
      return jax.tree.map(
        jnp.add, total, sums_and_grads(trainable, frozen, *part)
      ), None

    shapes = jax.eval_shape(
      sums_and_grads,
      trainable,
      frozen,
      *jax.tree.map(lambda x: x[0], (parts, keys)),
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, keys))[0]

  def step(state, frozen, batch, key):
    sums, grads = accumulate(state.trainable, frozen, batch, key)
    count = jnp.maximum(sums["loss"][1], 1.0)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.trainable
    )
    metrics = means(sums)
    metrics["gradient_norm"] = optax.tree.norm(grads)
    metrics["update_norm"] = optax.tree.norm(updates)
    trainable = optax.apply_updates(state.trainable, updates)
    return TrainState(trainable, opt_state, state.step + 1), metrics

  return step


def means(sums: Sums) -> dict[str, jax.Array]:
  """sum / count of each entry; an entry that counted nothing is 0."""
  return {
    name: total / jnp.maximum(count, 1.0)
    for name, (total, count) in sums.items()
  }


def _masked_sums(values: jax.Array, mask: jax.Array):
  return masked.masked_sum(values, mask), jnp.sum(mask, dtype=jnp.float32)


def language_model_loss(
  backbone: roles.Backbone, *, max_targets: int
) -> LossFn:
  """Next-token cross-entropy on the targets of a `TargetBatch`, per token.

  `max_targets` is at least the number of targets of any row.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable, frozen)
    sequence = roles.Sequence(batch.tokens, batch.positions, batch.segments)
    scores, mask = roles.target_logprobs(
      backbone,
      params,
      sequence,
      batch.target_mask,
      max_targets=max_targets,
      key=key,
    )
    loss = language_model.next_token_loss(scores.logprobs)
    return {
      "loss": _masked_sums(loss, mask),
      "accuracy": _masked_sums(scores.correct.astype(jnp.float32), mask),
    }

  return loss_fn


def reward_scores(
  backbone: roles.Backbone,
  params: params_lib.Params,
  tokens: jax.Array,
  lengths: jax.Array,
  prompt_lengths: jax.Array,
  *,
  max_response: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """Scores `[B]` of right-padded prompts and responses.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    tokens: `[B, T]`, int32.
    lengths: Of prompt and response together, `[B]`, int32.
    prompt_lengths: `[B]`, int32.
    max_response: At least the number of response tokens of any row.
    key: Turns LoRA dropout on.
  """
  columns = jnp.arange(tokens.shape[1])
  mask = (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])
  return roles.response_scores(
    backbone,
    params,
    roles.right_padded(tokens, lengths),
    mask,
    max_response=max_response,
    key=key,
  )


def pairwise_loss(backbone: roles.Backbone, *, max_response: int) -> LossFn:
  """Bradley-Terry on a `PreferenceBatch`, per pair; one pass for both sides.

  `max_response` is at least the number of response tokens of any row.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable, frozen)
    tokens = jnp.concatenate([batch.chosen_tokens, batch.rejected_tokens])
    lengths = jnp.concatenate([batch.chosen_lengths, batch.rejected_lengths])
    scores = reward_scores(
      backbone,
      params,
      tokens,
      lengths,
      jnp.concatenate([batch.prompt_lengths] * 2),
      max_response=max_response,
      key=key,
    )
    chosen, rejected = jnp.split(scores, 2)
    loss = preference.pairwise_preference_loss(chosen, rejected)
    right = (chosen > rejected) + 0.5 * (chosen == rejected)
    return {
      "loss": _masked_sums(loss, batch.valid),
      "accuracy": _masked_sums(right.astype(jnp.float32), batch.valid),
      "margin": _masked_sums(chosen - rejected, batch.valid),
    }

  return loss_fn


def pointwise_loss(backbone: roles.Backbone, *, max_response: int) -> LossFn:
  """Binary cross-entropy on a `LabelledBatch`, per row.

  `max_response` is at least the number of response tokens of any row.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable, frozen)
    scores = reward_scores(
      backbone,
      params,
      batch.tokens,
      batch.lengths,
      batch.prompt_lengths,
      max_response=max_response,
      key=key,
    )
    loss = preference.pointwise_preference_loss(scores, batch.labels)
    right = (scores > 0) == (batch.labels > 0.5)
    return {
      "loss": _masked_sums(loss, batch.valid),
      "accuracy": _masked_sums(right.astype(jnp.float32), batch.valid),
      "score": _masked_sums(scores, batch.valid),
    }

  return loss_fn


def reinforce_loss(
  backbone: roles.Backbone,
  *,
  temperature: float,
  beta: float,
  value_coef: float,
  reduction: str,
) -> LossFn:
  """The paper's update: REINFORCE with a learned baseline, KL in the reward.

  r_t = (1 - beta) r 1[t last] - beta (log pi_t - log pi_anchor_t)
  Z_t = sum_{t' >= t} r_t'
  loss = -sum_t log pi_t stopgrad(Z_t - V_t) + value_coef sum_t (Z_t - V_t)^2

  Args:
    backbone: Model and adapter shape.
    temperature: That of the rollout.
    beta: Weight of the KL, in [0, 1].
    value_coef: Weight of the value loss; policy and value share no parameter,
      so it scales the value's learning rate under SGD and little under Adam.
    reduction: "token" divides by the number of response tokens in the whole
      batch, "sequence" by the number of responses.

  The trainable tree is {"policy": ..., "value": ...}; frozen is the base that
  both stand on, or empty with full tuning.

  Reference: PAPER section 3; Lee et al. 2023, arXiv:2309.00267, appendix F.
  """

  def loss_fn(trainable, frozen, batch, key):
    del key  # dropout is off: log-probs must be those of the sampler
    policy = params_lib.combine(trainable["policy"], frozen)
    value = params_lib.combine(trainable["value"], frozen)
    mask = batch.response_mask
    sequence = roles.with_response(
      batch.prompts, batch.prompt_lengths, batch.responses, mask
    )
    length = batch.responses.shape[1]
    scores = roles.response_logprobs(
      backbone,
      policy,
      sequence,
      response_len=length,
      temperature=temperature,
    )
    values = roles.response_values(
      backbone, value, sequence, response_len=length
    )
    rewards = advantages_lib.shape_rewards(
      sequence_rewards=batch.rewards,
      kl=batch.policy_logprobs - batch.anchor_logprobs,
      response_mask=mask,
      beta=beta,
    )
    returns = advantages_lib.returns_to_go(rewards, mask)
    advantages = advantages_lib.reinforce_advantages(returns, values)
    policy_loss = policy_gradient.reinforce_loss(
      logprobs=scores.logprobs, advantages=advantages
    )
    value_loss = policy_gradient.value_loss(values=values, returns=returns)
    rows = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.float32)
    tokens = jnp.sum(mask, dtype=jnp.float32)
    total = masked.masked_sum(policy_loss + value_coef * value_loss, mask)
    ratio = jnp.exp(scores.logprobs - batch.policy_logprobs)
    return {
      "loss": (total, tokens if reduction == "token" else rows),
      "policy_loss": _masked_sums(policy_loss, mask),
      "value_loss": _masked_sums(value_loss, mask),
      "advantage": _masked_sums(advantages, mask),
      "return": _masked_sums(returns, mask),
      "value": _masked_sums(values, mask),
      "ratio": _masked_sums(ratio, mask),
    }

  return loss_fn
