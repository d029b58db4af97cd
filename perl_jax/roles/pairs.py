"""Two responses to one prompt in one row, so that the prompt is read once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax.models import attention, transformer
from perl_jax.models.config import ModelConfig
from perl_jax.roles.sequences import Sequence, right_padded


class PairRows(NamedTuple):
  """Rows that hold a prompt, its chosen and its rejected response.

  A row is the right-padded prompt and chosen response, `S` columns, followed by
  the rejected response alone, `R` columns. For a prompt of 3 tokens, a chosen
  response of 2, a rejected one of 3, S = 6 and R = 4:

    tokens     p0 p1 p2 c0 c1  .  r0 r1 r2  .
    positions   0  1  2  3  4  0   3  4  5  0
    segments    *  *  *  1  1  0   2  2  2  0     * is transformer.SHARED

  Both responses attend to the prompt and neither to the other.

  Attributes:
    sequence: The rows, `[B, S + R]`.
    columns: Columns of the last prompt token and of the response in a row,
      `[B, 1 + R]`, int32, of the chosen and of the rejected response.
    response_mask: Which of those columns hold a response token,
      `[2 B, 1 + R]`, bool; chosen rows first. False in column 0.
  """

  sequence: Sequence
  columns: tuple[jax.Array, jax.Array]
  response_mask: jax.Array

  def split(self, array: jax.Array) -> jax.Array:
    """The last prompt token and the response of each side.

    Args:
      array: Values of the columns of the rows, `[B, S + R, ...]`.

    Returns:
      `[2 B, 1 + R, ...]`, chosen rows first.
    """
    rows = jnp.arange(array.shape[0])[:, None]
    return jnp.concatenate([array[rows, side] for side in self.columns])

  @property
  def responses(self) -> Sequence:
    """Each response by itself after the last token of its prompt, `split`."""
    mask = self.response_mask.at[:, 0].set(True)
    tokens, positions, _ = self.sequence
    return Sequence(
      self.split(tokens), self.split(positions), mask.astype(jnp.int32)
    )


def can_pair(config: ModelConfig, *, width: int, max_response: int) -> bool:
  """Whether `pair_rows` is possible, and cheaper than a row for each side.

  A row of a pair has S + R columns instead of 2 S. From R = S / 2 on its
  attention costs more than that saves. A splash kernel has no mask that hides
  one response from the other.

  Args:
    config: Shapes and switches of the transformer.
    width: `S`, columns of a row with one response.
    max_response: `R`, at least the number of response tokens of any row.
  """
  kernel = attention.choose(config, queries=width, keys=width, contiguous=True)
  return 2 * max_response <= width and kernel != "splash"


def pair_rows(
  *,
  prompt_lengths: jax.Array,
  chosen_tokens: jax.Array,
  chosen_lengths: jax.Array,
  rejected_tokens: jax.Array,
  rejected_lengths: jax.Array,
  max_response: int,
) -> PairRows:
  """Lays the two responses to each prompt out in one row.

  Args:
    prompt_lengths: Tokens of each prompt, `[B]`, int32.
    chosen_tokens: Right-padded prompts and chosen responses, `[B, S]`, int32.
    chosen_lengths: Tokens of prompt and chosen response, `[B]`, int32.
    rejected_tokens: The same prompts with the rejected responses, `[B, S]`.
    rejected_lengths: Tokens of prompt and rejected response, `[B]`, int32.
    max_response: `R`, at least the number of response tokens of any row.
  """
  width = chosen_tokens.shape[1]
  start, steps = prompt_lengths[:, None], jnp.arange(max_response)
  positions = start + steps
  own_columns = jnp.minimum(positions, width - 1)
  chosen_mask = positions < chosen_lengths[:, None]
  rejected_mask = positions < rejected_lengths[:, None]
  chosen = right_padded(chosen_tokens, chosen_lengths)
  in_prompt = jnp.arange(width) < start
  rejected = Sequence(
    jnp.take_along_axis(rejected_tokens, own_columns, axis=1),
    jnp.where(rejected_mask, positions, 0),
    2 * rejected_mask.astype(jnp.int32),
  )
  segments = jnp.where(in_prompt, transformer.SHARED, 1) * chosen.segments
  sequence = Sequence(
    *(
      jnp.concatenate(sides, axis=1)
      for sides in zip(
        chosen._replace(segments=segments), rejected, strict=True
      )
    )
  )
  last = jnp.maximum(start - 1, 0)
  rejected_columns = jnp.broadcast_to(width + steps, positions.shape)
  mask = jnp.concatenate([chosen_mask, rejected_mask])
  return PairRows(
    sequence,
    (
      jnp.concatenate([last, own_columns], axis=1),
      jnp.concatenate([last, rejected_columns], axis=1),
    ),
    jnp.pad(mask, ((0, 0), (1, 0))),
  )
