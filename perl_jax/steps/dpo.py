"""Loss of the policy on pairs of responses, with no reward model: DPO."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import masked, preference
from perl_jax.steps.train import LossFn, masked_sums


class AnchoredPairs(NamedTuple):
  """Pairs and what the anchor says about them, which no step changes.

  Attributes:
    pairs: A `PreferenceBatch`.
    chosen: log pi_anchor of each chosen response, `[B]`, float32.
    rejected: The same of the rejected ones.
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
  """log pi(y|x) of the chosen and the rejected responses, `[B]` each.

  Summed over the tokens of a response, the stop token included. One pass over
  the backbone for both sides; a row that only fills the batch gets 0.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy or the anchor.
    pairs: A `PreferenceBatch`.
    max_response: At least the number of response tokens of any row.
    key: Turns LoRA dropout on.
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
  """Direct preference optimisation on `AnchoredPairs`, per pair.

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
