"""Labelled responses: a prompt, a response and a binary label."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


class LabelledBatch(NamedTuple):
  """Prompts followed by a response, with its label; padded on the right.

  Attributes:
    tokens: `[B, T]`, int32.
    lengths: `[B]`, int32; tokens of prompt and response.
    prompt_lengths: `[B]`, int32; the response begins at this position.
    labels: `[B]`, float32; 1.0 for a good response, 0.0 for a bad one.
    valid: `[B]`, bool; false on padding rows.
    index: `[B]`, int32; position of the record in the data, -1 if not valid.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  prompt_lengths: np.ndarray
  labels: np.ndarray
  valid: np.ndarray
  index: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Number of tokens without padding."""
    return int(self.lengths[self.valid].sum())


class EncodedLabelled(NamedTuple):
  """Tokens of one labelled response, after its prompt."""

  tokens: list[int]
  prompt_length: int
  label: float
  index: int

  @property
  def length(self) -> int:
    """Number of tokens."""
    return len(self.tokens)

  @property
  def response_length(self) -> int:
    """Number of tokens after the prompt."""
    return self.length - self.prompt_length

  @property
  def parts(self) -> list[common.Part]:
    """The prompt and the response, with its label."""
    name = f"response, label {self.label:g}"
    return [
      ("prompt", self.tokens[: self.prompt_length], False),
      (name, self.tokens[self.prompt_length :], True),
    ]


def collate_labelled(
  rows: Sequence[EncodedLabelled],
  length: int,
  batch_size: int | None = None,
  pad_id: int = 0,
) -> LabelledBatch:
  """Pads rows on the right to `length`, and the batch to `batch_size` rows."""
  size = common.padded_size(rows, batch_size)
  tokens, lengths = common.pad(
    [row.tokens for row in rows], length, size, pad_id
  )
  labels = np.zeros(size, np.float32)
  labels[: len(rows)] = [row.label for row in rows]
  return LabelledBatch(
    tokens,
    lengths,
    common.prompt_lengths(rows, size),
    labels,
    *common.validity(rows, size),
  )


def encode_labelled(
  rows: Iterable[records.Labelled],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
  closed: bool = False,
  bad: Unusable | None = None,
) -> tuple[list[EncodedLabelled], dict[str, int]]:
  """Encodes prompt and response of every row; see `encode_preferences`."""
  encoded, counts = [], common.no_cuts()
  for index, row in enumerate(rows):
    found = common.encode_row(
      row,
      (row.response,),
      tokenization,
      limit,
      long,
      counts,
      closed,
      bad=bad,
    )
    if found is None:
      continue
    prompt, (response,) = found
    encoded.append(
      EncodedLabelled(prompt + response, len(prompt), float(row.label), index)
    )
  return encoded, counts
