"""Prompts: the contexts that the policy responds to."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


class PromptBatch(NamedTuple):
  """Prompts to respond to, padded on the LEFT: all end in the last column.

  Attributes:
    tokens: `[B, P]`, int32.
    lengths: `[B]`, int32; tokens without padding.
    valid: `[B]`, bool; false on padding rows.
    index: `[B]`, int32; position of the record in the data, -1 if not valid.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  valid: np.ndarray
  index: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Number of prompt tokens without padding."""
    return int(self.lengths[self.valid].sum())


class EncodedPrompt(NamedTuple):
  """Tokens of one prompt."""

  tokens: np.ndarray
  index: int

  @property
  def length(self) -> int:
    """Number of tokens."""
    return len(self.tokens)

  @property
  def response_length(self) -> int:
    """Number of tokens after the prompt: none."""
    return 0

  @property
  def parts(self) -> list[common.Part]:
    """The prompt."""
    return [("prompt", self.tokens, False)]


def collate_prompts(
  rows: Sequence[EncodedPrompt],
  length: int,
  batch_size: int | None = None,
  pad_id: int = 0,
) -> PromptBatch:
  """Pads prompts on the LEFT to `length`, and the batch to `batch_size`."""
  size = common.padded_size(rows, batch_size)
  tokens, lengths = common.pad(
    [row.tokens for row in rows], length, size, pad_id, left=True
  )
  return PromptBatch(tokens, lengths, *common.validity(rows, size))


def encode_prompts(
  rows: Iterable[records.Prompt],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
  closed: bool = False,
  bad: Unusable | None = None,
) -> tuple[list[EncodedPrompt], dict[str, int]]:
  """Encodes the prompt of every row; see `encode_preferences`.

  There is no response that could be `closed`.
  """
  del closed
  encoded, counts = [], common.no_cuts()
  for index, row in enumerate(rows):
    found = common.encode_row(
      row, (), tokenization, limit, long, counts, field="prompt_len", bad=bad
    )
    if found is not None:
      encoded.append(EncodedPrompt(common.held(found[0]), index))
  return encoded, counts
