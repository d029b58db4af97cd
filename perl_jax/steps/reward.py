"""Losses of reward models, on preference pairs and on labelled responses."""

from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import preference
from perl_jax.steps.train import LossFn, masked_sums


def reward_scores(
  backbone: roles.Backbone,
  params: params_lib.Params,
  tokens: jax.Array,
  lengths: jax.Array,
  prompt_lengths: jax.Array,
  *,
  max_response: int,
  closing: int = 0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Scores `[B]`, float32, of right-padded prompts and responses.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    tokens: Prompts, each followed by its response, `[B, T]`, int32.
    lengths: Tokens of prompt and response together, `[B]`, int32.
    prompt_lengths: Tokens of each prompt, `[B]`, int32.
    max_response: At least the number of response tokens of any row.
    closing: Number of tokens at the end of each row that the chat template
      writes after a response: the score is read at the last of them.
    key: Random key that turns LoRA dropout on.
  """
  columns = jnp.arange(tokens.shape[1])
  mask = columns >= prompt_lengths[:, None]
  mask &= columns < lengths[:, None] - closing
  return roles.response_scores(
    backbone,
    params,
    roles.right_padded(tokens, lengths),
    mask,
    max_response=max_response,
    key=key,
  )


def pair_scores(
  backbone: roles.Backbone,
  params: params_lib.Params,
  batch: Any,
  *,
  max_response: int,
  closing: int = 0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Scores of both responses of each pair of a `PreferenceBatch`.

  Where responses are short, a pair is read in one row that shares the prompt:
  see `roles.PairRows`.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    batch: `PreferenceBatch` of B pairs.
    max_response: At least the number of response tokens of any row.
    closing: See `reward_scores`.
    key: Random key that turns LoRA dropout on.

  Returns:
    `[2 B]`, float32: the chosen responses, then the rejected ones.
  """
  width = batch.chosen_tokens.shape[1]
  if not roles.can_pair(
    backbone.config, width=width, max_response=max_response
  ):
    return reward_scores(
      backbone,
      params,
      jnp.concatenate([batch.chosen_tokens, batch.rejected_tokens]),
      jnp.concatenate([batch.chosen_lengths, batch.rejected_lengths]),
      jnp.concatenate([batch.prompt_lengths] * 2),
      max_response=max_response,
      closing=closing,
      key=key,
    )
  rows = roles.pair_rows(
    prompt_lengths=batch.prompt_lengths,
    chosen_tokens=batch.chosen_tokens,
    chosen_lengths=batch.chosen_lengths,
    rejected_tokens=batch.rejected_tokens,
    rejected_lengths=batch.rejected_lengths,
    max_response=max_response,
  )
  hidden = roles.hidden_states(backbone, params, rows.sequence, key=key)
  return roles.response_scores(
    backbone,
    params,
    rows.responses,
    roles.without_closing(rows.response_mask, closing),
    max_response=max_response,
    hidden=rows.split(hidden),
  )


def pairwise_loss(
  backbone: roles.Backbone, *, max_response: int, closing: int = 0
) -> LossFn:
  """The Bradley-Terry loss on a `PreferenceBatch`, per pair.

  Args:
    backbone: Model and adapter shape.
    max_response: At least the number of response tokens of any row.
    closing: See `reward_scores`.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable["reward"], frozen)
    scores = pair_scores(
      backbone,
      params,
      batch,
      max_response=max_response,
      closing=closing,
      key=key,
    )
    chosen, rejected = jnp.split(scores, 2)
    loss = preference.pairwise_preference_loss(chosen, rejected)
    right = (chosen > rejected) + 0.5 * (chosen == rejected)
    return {
      "loss": masked_sums(loss, batch.valid),
      "accuracy": masked_sums(right.astype(jnp.float32), batch.valid),
      "margin": masked_sums(chosen - rejected, batch.valid),
    }

  return loss_fn


def pointwise_loss(
  backbone: roles.Backbone, *, max_response: int, closing: int = 0
) -> LossFn:
  """Binary cross-entropy on a `LabelledBatch`, per row.

  Args:
    backbone: Model and adapter shape.
    max_response: At least the number of response tokens of any row.
    closing: See `reward_scores`.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable["reward"], frozen)
    scores = reward_scores(
      backbone,
      params,
      batch.tokens,
      batch.lengths,
      batch.prompt_lengths,
      max_response=max_response,
      closing=closing,
      key=key,
    )
    loss = preference.pointwise_preference_loss(scores, batch.labels)
    right = (scores > 0) == (batch.labels > 0.5)
    return {
      "loss": masked_sums(loss, batch.valid),
      "accuracy": masked_sums(right.astype(jnp.float32), batch.valid),
      "score": masked_sums(scores, batch.valid),
    }

  return loss_fn
