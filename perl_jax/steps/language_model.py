"""Supervised fine-tuning: cross-entropy on the targets of packed dialogues."""

import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import language_model
from perl_jax.steps.train import LossFn, masked_sums


def language_model_loss(
  backbone: roles.Backbone, *, max_targets: int
) -> LossFn:
  """Next-token cross-entropy on the targets of a `TargetBatch`, per token.

  Args:
    backbone: Model and adapter shape.
    max_targets: At least the number of targets of any row.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable["policy"], frozen)
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
      "loss": masked_sums(loss, mask),
      "accuracy": masked_sums(scores.correct.astype(jnp.float32), mask),
    }

  return loss_fn
