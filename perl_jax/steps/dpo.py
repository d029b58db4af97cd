"""Direct preference optimisation (DPO): training the policy on pairs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import masked, preference
from perl_jax.steps.train import LossFn, masked_sums


class AnchoredPairs(NamedTuple):
  """Pairs with the anchor's log-probabilities, which no step changes.

  Attributes:
    pairs: A `PreferenceBatch`.
    chosen: log pi_anchor(y|x) of each chosen response, `[B]`, float32.
    rejected: log pi_anchor(y|x) of each rejected response, `[B]`, float32.
  """

  pairs: Any
  chosen: jax.Array
  rejected: jax.Array


def pair_logprobs(
  backbone: roles.Backbone,
  params: params_lib.Params,
  pairs: Any,
  *,
  max_response: int,
  key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """log pi(y|x) of the chosen and the rejected responses, `[B]` each, float32.

  log pi(y|x) = sum_t log pi(y_t | x, y_<t), the stop token included

  Both sides go through the backbone in one pass. A row that only fills the
  batch gets 0.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy or the anchor.
    pairs: A `PreferenceBatch`.
    max_response: At least the number of response tokens of any row.
    key: Random key that turns LoRA dropout on.
  """
  tokens = jnp.concatenate([pairs.chosen_tokens, pairs.rejected_tokens])
  lengths = jnp.concatenate([pairs.chosen_lengths, pairs.rejected_lengths])
  starts = jnp.concatenate([pairs.prompt_lengths] * 2)
  columns = jnp.arange(tokens.shape[1])
  response = (columns >= starts[:, None]) & (columns < lengths[:, None])
  scores, mask = roles.target_logprobs(
    backbone,
    params,
    roles.right_padded(tokens, lengths),
    response,
    max_targets=max_response,
    key=key,
  )
  chosen, rejected = jnp.split(
    masked.masked_sum(scores.logprobs, mask, axis=1), 2
  )
  return chosen, rejected


def dpo_loss(
  backbone: roles.Backbone,
  *,
  max_response: int,
  beta: float,
  label_smoothing: float,
  kind: str,
) -> LossFn:
  """The DPO loss on `AnchoredPairs`, per pair.

  Args:
    backbone: Model and adapter shape.
    max_response: At least the number of response tokens of any row.
    beta, label_smoothing, kind: See `preference.dpo_loss`.
  """

  def loss_fn(trainable, frozen, batch, key):
    chosen, rejected = pair_logprobs(
      backbone,
      params_lib.combine(trainable["policy"], frozen),
      batch.pairs,
      max_response=max_response,
      key=key,
    )
    loss, chosen, rejected = preference.dpo_loss(
      chosen_logprobs=chosen,
      rejected_logprobs=rejected,
      anchor_chosen_logprobs=batch.chosen,
      anchor_rejected_logprobs=batch.rejected,
      beta=beta,
      label_smoothing=label_smoothing,
      kind=kind,
    )
    valid = batch.pairs.valid
    right = (chosen > rejected) + 0.5 * (chosen == rejected)
    return {
      "loss": masked_sums(loss, valid),
      "accuracy": masked_sums(right.astype(jnp.float32), valid),
      "margin": masked_sums(chosen - rejected, valid),
      "chosen_reward": masked_sums(chosen, valid),
      "rejected_reward": masked_sums(rejected, valid),
    }

  return loss_fn
