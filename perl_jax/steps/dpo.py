"""Direct preference optimisation (DPO): training the policy on pairs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import preference
from perl_jax.steps.train import LossFn, masked_sums


class AnchoredPairs(NamedTuple):
  """Pairs with the anchor's log-probabilities, which no step changes.

  Attributes:
    pairs: `PackedResponses` of two responses, with targets.
    anchor: log pi_anchor(y|x) of both responses, `[N, P, 2]`, float32, the
      chosen ones first.
  """

  pairs: Any
  anchor: jax.Array


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
    max_response: At least the number of tokens of any response.
    beta, label_smoothing, kind: See `preference.dpo_loss`.
  """

  def loss_fn(trainable, frozen, batch, key):
    policy = roles.packed_logprobs(
      backbone,
      params_lib.combine(trainable["policy"], frozen),
      batch.pairs,
      max_response=max_response,
      key=key,
    )
    chosen, rejected = policy.reshape(-1, 2).T
    anchor_chosen, anchor_rejected = batch.anchor.reshape(-1, 2).T
    loss, chosen, rejected = preference.dpo_loss(
      chosen_logprobs=chosen,
      rejected_logprobs=rejected,
      anchor_chosen_logprobs=anchor_chosen,
      anchor_rejected_logprobs=anchor_rejected,
      beta=beta,
      label_smoothing=label_smoothing,
      kind=kind,
    )
    valid = batch.pairs.valid.reshape(-1)
    right = (chosen > rejected) + 0.5 * (chosen == rejected)
    return {
      "loss": masked_sums(loss, valid),
      "accuracy": masked_sums(right.astype(jnp.float32), valid),
      "margin": masked_sums(chosen - rejected, valid),
      "chosen_reward": masked_sums(chosen, valid),
      "rejected_reward": masked_sums(rejected, valid),
    }

  return loss_fn
