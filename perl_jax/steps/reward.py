"""Losses of reward models, on preference pairs and on labelled responses."""

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import preference
from perl_jax.steps.train import LossFn, masked_sums


def _without_gradient_of_bias(params):
  """The same parameters; the head's bias cancels in a difference of scores.

  Its gradient is 0. Summed over responses it would be so up to rounding alone,
  which Adam makes as large as any other step.
  """
  head = params[params_lib.HEAD]
  bias = jax.lax.stop_gradient(head["bias"])
  return params | {params_lib.HEAD: head | {"bias": bias}}


def pairwise_loss(
  backbone: roles.Backbone, *, max_response: int, closing: int = 0
) -> LossFn:
  """The Bradley-Terry loss on `PackedResponses` of two responses, per pair.

  Args:
    backbone: Model and adapter shape.
    max_response: At least the number of tokens of any response.
    closing: See `roles.packed_scores`.
  """

  def loss_fn(trainable, frozen, batch, key):
    scores = roles.packed_scores(
      backbone,
      _without_gradient_of_bias(
        params_lib.combine(trainable["reward"], frozen)
      ),
      batch,
      max_response=max_response,
      closing=closing,
      key=key,
    )
    chosen, rejected = scores.reshape(-1, 2).T
    valid = batch.valid.reshape(-1)
    loss = preference.pairwise_preference_loss(chosen, rejected)
    right = (chosen > rejected) + 0.5 * (chosen == rejected)
    return {
      "loss": masked_sums(loss, valid),
      "accuracy": masked_sums(right.astype(jnp.float32), valid),
      "margin": masked_sums(chosen - rejected, valid),
    }

  return loss_fn


def pointwise_loss(
  backbone: roles.Backbone, *, max_response: int, closing: int = 0
) -> LossFn:
  """Binary cross-entropy on labelled `PackedResponses`, per response.

  Args:
    backbone: Model and adapter shape.
    max_response: At least the number of tokens of any response.
    closing: See `roles.packed_scores`.
  """

  def loss_fn(trainable, frozen, batch, key):
    scores = roles.packed_scores(
      backbone,
      params_lib.combine(trainable["reward"], frozen),
      batch,
      max_response=max_response,
      closing=closing,
      key=key,
    ).reshape(-1)
    labels, valid = batch.labels.reshape(-1), batch.valid.reshape(-1)
    loss = preference.pointwise_preference_loss(scores, labels)
    right = (scores > 0) == (labels > 0.5)
    return {
      "loss": masked_sums(loss, valid),
      "accuracy": masked_sums(right.astype(jnp.float32), valid),
      "score": masked_sums(scores, valid),
    }

  return loss_fn
