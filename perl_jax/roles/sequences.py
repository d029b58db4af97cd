"""Rows of tokens as the model reads them, and how responses lie in them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax.models import transformer


class Sequence(NamedTuple):
  """Tokens with what masks are made of, each `[B, T]`, int32."""

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array


def right_padded(tokens: jax.Array, lengths: jax.Array) -> Sequence:
  """Sequences that start in column 0; `lengths` `[B]` says where they end."""
  columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  inside = columns < lengths[:, None]
  return Sequence(tokens, jnp.where(inside, columns, 0), inside.astype("int32"))


def left_padded(
  tokens: jax.Array, lengths: jax.Array, *, segment: int = 1
) -> Sequence:
  """Sequences that end in the last column; what is real gets the segment."""
  start = tokens.shape[1] - lengths[:, None]
  positions = jnp.arange(tokens.shape[1]) - start
  inside = positions >= 0
  segments = segment * inside.astype("int32")
  return Sequence(tokens, jnp.where(inside, positions, 0), segments)


def with_response(
  prompts: jax.Array,
  prompt_lengths: jax.Array,
  responses: jax.Array,
  response_mask: jax.Array,
  *,
  group: int = 1,
) -> Sequence:
  """Left-padded prompts `[B, P]`, each followed by its responses.

  With `group` G above 1, sample g of prompt b is row b G + g of responses
  `[B * G, T]`; rows of the sequence are P + G T long. All responses see the
  prompt, and none sees another.

  Raises:
    ValueError: The responses are not `group` for each prompt.
  """
  batch, length = prompts.shape[0], responses.shape[-1]
  if responses.size != batch * group * length:
    raise ValueError(
      f"responses {responses.shape} are not group={group} for each of {batch}"
      f" prompts; give {batch * group} rows or another group."
    )
  segment = 1 if group == 1 else transformer.SHARED
  prompt = left_padded(prompts, prompt_lengths, segment=segment)
  mask = response_mask.reshape(batch, group, length)
  positions = prompt_lengths[:, None, None] + jnp.arange(length)
  segments = mask * jnp.arange(1, group + 1, dtype=jnp.int32)[:, None]

  def join(prompt, response):
    return jnp.concatenate([prompt, response.reshape(batch, -1)], axis=1)

  return Sequence(
    join(prompts, responses),
    join(prompt.positions, jnp.where(mask, positions, 0)),
    join(prompt.segments, segments),
  )


def ungroup(array, response_len, group):
  """The prompt's last column, then a response's own, `[B * G, 1 + T, ...]`."""
  start = array.shape[1] - group * response_len
  if group == 1:
    return array[:, start - 1 :]
  last = jnp.repeat(array[:, start - 1 : start], group, axis=0)
  own = array[:, start:].reshape(-1, response_len, *array.shape[2:])
  return jnp.concatenate([last, own], axis=1)
