"""Losses of reward models: on pairs, and on labelled rows."""

from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models import attention, transformer
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


def pair_scores(
  backbone: roles.Backbone,
  params: params_lib.Params,
  batch: Any,
  *,
  max_response: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """Scores `[2 B]` of the chosen and then the rejected of a `PreferenceBatch`.

  Where responses are short, the prompt is computed once for both: a row is the
  chosen `[S]` and the rejected response `[R]` behind it, which sees the prompt
  and not the chosen response. S + R columns instead of 2 S; from R = S / 2 on
  attention would cost more than that saves. A kernel that takes no masks keeps
  the two apart.
  """
  width = batch.chosen_tokens.shape[1]
  kernel = attention.choose(
    backbone.config, queries=width, keys=width, contiguous=True
  )
  if 2 * max_response > width or kernel == "splash":
    return reward_scores(
      backbone,
      params,
      jnp.concatenate([batch.chosen_tokens, batch.rejected_tokens]),
      jnp.concatenate([batch.chosen_lengths, batch.rejected_lengths]),
      jnp.concatenate([batch.prompt_lengths] * 2),
      max_response=max_response,
      key=key,
    )
  start, steps = batch.prompt_lengths[:, None], jnp.arange(max_response)
  columns = start + steps
  own_columns = jnp.minimum(columns, width - 1)
  chosen_mask = columns < batch.chosen_lengths[:, None]
  rejected_mask = columns < batch.rejected_lengths[:, None]
  chosen = roles.right_padded(batch.chosen_tokens, batch.chosen_lengths)
  in_prompt = jnp.arange(width) < start
  sequence = roles.Sequence(
    jnp.concatenate(
      [
        chosen.tokens,
        jnp.take_along_axis(batch.rejected_tokens, own_columns, axis=1),
      ],
      axis=1,
    ),
    jnp.concatenate(
      [chosen.positions, jnp.where(rejected_mask, columns, 0)], axis=1
    ),
    jnp.concatenate(
      [
        jnp.where(in_prompt, transformer.SHARED, 1) * chosen.segments,
        2 * rejected_mask.astype(jnp.int32),
      ],
      axis=1,
    ),
  )
  hidden = roles.hidden_states(backbone, params, sequence, key=key)
  # Each response by itself again, behind the last token of the prompt.
  behind = jnp.broadcast_to(width + steps, columns.shape)
  last = jnp.maximum(start - 1, 0)
  rows = jnp.arange(start.shape[0])[:, None]

  def apart(array):
    return jnp.concatenate(
      [
        array[rows, jnp.concatenate([last, side], axis=1)]
        for side in (own_columns, behind)
      ]
    )

  mask = jnp.concatenate([chosen_mask, rejected_mask])
  own = roles.Sequence(
    *map(apart, sequence[:2]),
    jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True).astype(jnp.int32),
  )
  return roles.response_scores(
    backbone,
    params,
    own,
    jnp.pad(mask, ((0, 0), (1, 0))),
    max_response=max_response,
    hidden=apart(hidden),
  )


def pairwise_loss(backbone: roles.Backbone, *, max_response: int) -> LossFn:
  """Bradley-Terry on a `PreferenceBatch`, per pair; one pass for both sides.

  `max_response` is at least the number of response tokens of any row.
  """

  def loss_fn(trainable, frozen, batch, key):
    params = params_lib.combine(trainable["reward"], frozen)
    scores = pair_scores(
      backbone, params, batch, max_response=max_response, key=key
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


def pointwise_loss(backbone: roles.Backbone, *, max_response: int) -> LossFn:
  """Binary cross-entropy on a `LabelledBatch`, per row.

  `max_response` is at least the number of response tokens of any row.
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
