"""Rows of tokens for the model: padded rows, and prompts with responses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import segments as segments_lib


class Sequence(NamedTuple):
  """Rows of tokens and what attention masks are made of.

  Attributes:
    tokens: Token ids, `[B, T]`, int32.
    positions: Position of each token in its sequence, `[B, T]`, int32.
    segments: Sequence that each token belongs to, `[B, T]`, int32; 0 is
      padding, a multiple of `segments.PREFIX` a prefix of several.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array


def right_padded(tokens: jax.Array, lengths: jax.Array) -> Sequence:
  """Rows that start in column 0 and are padded on the right.

  Args:
    tokens: `[B, T]`, int32.
    lengths: Number of tokens of each row, `[B]`, int32.
  """
  columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  inside = columns < lengths[:, None]
  return Sequence(tokens, jnp.where(inside, columns, 0), inside.astype("int32"))


def left_padded(
  tokens: jax.Array, lengths: jax.Array, *, segment: int = 1
) -> Sequence:
  """Rows that end in the last column and are padded on the left.

  Args:
    tokens: `[B, T]`, int32.
    lengths: Number of tokens of each row, `[B]`, int32.
    segment: Segment of the tokens that are not padding.
  """
  start = tokens.shape[1] - lengths[:, None]
  positions = jnp.arange(tokens.shape[1]) - start
  inside = positions >= 0
  segments = segment * inside.astype("int32")
  return Sequence(tokens, jnp.where(inside, positions, 0), segments)


def segments_of(group: int) -> tuple[int, jax.Array]:
  """Segment of a prompt, and of each of its responses, `[G]` int32.

  A single response continues the segment of its prompt; several have the
  prompt as their prefix.

  Args:
    group: `G`, number of responses to each prompt.
  """
  if group == 1:
    return 1, jnp.ones(1, jnp.int32)
  first = segments_lib.PREFIX
  return first, jnp.arange(first + 1, first + 1 + group, dtype=jnp.int32)


def with_response(
  prompts: jax.Array,
  prompt_lengths: jax.Array,
  responses: jax.Array,
  response_mask: jax.Array,
  *,
  group: int = 1,
) -> Sequence:
  """Rows of a prompt followed by its G responses, `[B, P + G T]`.

  All responses attend to the prompt, and none to another.

  Args:
    prompts: Left-padded prompts, `[B, P]`, int32.
    prompt_lengths: Tokens of each prompt, `[B]`, int32.
    responses: Row b G + g is response g to prompt b, `[B * G, T]`, int32.
    response_mask: Which tokens are the response, `[B * G, T]`, bool.
    group: `G`, number of responses to each prompt.

  Raises:
    ValueError: The number of responses is not B G.
  """
  batch, length = prompts.shape[0], responses.shape[-1]
  if responses.size != batch * group * length:
    raise ValueError(
      f"responses {responses.shape} are not group={group} for each of {batch}"
      f" prompts; give {batch * group} rows or another group."
    )
  segment, own = segments_of(group)
  prompt = left_padded(prompts, prompt_lengths, segment=segment)
  mask = response_mask.reshape(batch, group, length)
  positions = prompt_lengths[:, None, None] + jnp.arange(length)
  segments = mask * own[:, None]

  def join(prompt, response):
    return jnp.concatenate([prompt, response.reshape(batch, -1)], axis=1)

  return Sequence(
    join(prompts, responses),
    join(prompt.positions, jnp.where(mask, positions, 0)),
    join(prompt.segments, segments),
  )


def ungroup(array, response_len, group):
  """Cuts rows of `with_response` into their responses.

  Args:
    array: Values of the columns of the rows, `[B, P + G T, ...]`.
    response_len: `T`.
    group: `G`.

  Returns:
    The last column of the prompt, then those of the response, for each
    response, `[B * G, 1 + T, ...]`.
  """
  start = array.shape[1] - group * response_len
  if group == 1:
    return array[:, start - 1 :]
  last = jnp.repeat(array[:, start - 1 : start], group, axis=0)
  own = array[:, start:].reshape(-1, response_len, *array.shape[2:])
  return jnp.concatenate([last, own], axis=1)
