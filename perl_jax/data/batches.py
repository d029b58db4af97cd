"""Batches: records as tokens, padded to a few fixed lengths.

`collate_*` turns the rows of tokens that `encoding.py` made (and `packing.py`
packed, for dialogues) into the arrays that a step takes. A batch is a
NamedTuple of numpy arrays, and therefore a pytree. Lengths and segments say
what is real; the pad id never does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.data.encoding import (
  EncodedLabelled,
  EncodedPreference,
  EncodedPrompt,
)


class TargetBatch(NamedTuple):
  """Packed dialogues for language modelling.

  Attributes:
    tokens: `[B, T]`, int32.
    positions: `[B, T]`, int32; from 0 in every segment.
    segments: `[B, T]`, int32; from 1, and 0 on padding. A token attends
      only inside its own segment.
    target_mask: `[B, T]`, bool; entry t: `tokens[:, t]` is a target (the loss
      is on predicting it). Never true on the first token of a segment.
  """

  tokens: np.ndarray
  positions: np.ndarray
  segments: np.ndarray
  target_mask: np.ndarray


class PreferenceBatch(NamedTuple):
  """Pairs of prompt + response, right padded.

  Attributes:
    chosen_tokens: `[B, T]`, int32.
    chosen_lengths: `[B]`, int32.
    rejected_tokens: `[B, T]`, int32; begins with the same prompt as chosen.
    rejected_lengths: `[B]`, int32.
    prompt_lengths: `[B]`, int32; how much both begin with.
    valid: `[B]`, bool; false on rows that only fill the batch.
    index: `[B]`, int32; row in the sequence of records, -1 where not valid.
  """

  chosen_tokens: np.ndarray
  chosen_lengths: np.ndarray
  rejected_tokens: np.ndarray
  rejected_lengths: np.ndarray
  prompt_lengths: np.ndarray
  valid: np.ndarray
  index: np.ndarray


class LabelledBatch(NamedTuple):
  """Prompt + response with a label, right padded.

  Attributes:
    tokens: `[B, T]`, int32.
    lengths: `[B]`, int32.
    prompt_lengths: `[B]`, int32; where the response begins.
    labels: `[B]`, float32.
    valid: `[B]`, bool; false on rows that only fill the batch.
    index: `[B]`, int32; row in the sequence of records, -1 where not valid.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  prompt_lengths: np.ndarray
  labels: np.ndarray
  valid: np.ndarray
  index: np.ndarray


class PromptBatch(NamedTuple):
  """Prompts to respond to, LEFT padded, so that all end in the last column.

  Attributes:
    tokens: `[B, P]`, int32.
    lengths: `[B]`, int32.
    valid: `[B]`, bool; false on rows that only fill the batch.
    index: `[B]`, int32; row in the sequence of records, -1 where not valid.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  valid: np.ndarray
  index: np.ndarray


def bucket_for(length: int, buckets: Sequence[int]) -> int:
  """The smallest of the buckets that holds `length` tokens."""
  fitting = [bucket for bucket in buckets if bucket >= length]
  if not fitting:
    raise ValueError(
      f"A row of {length} tokens fits in none of the buckets {list(buckets)}."
    )
  return min(fitting)


def collate_targets(
  rows: Sequence[TargetBatch], length: int, batch_size: int | None = None
) -> TargetBatch:
  """Stacks packed rows; missing ones are padding (segment 0) throughout."""
  batch_size = _batch_size(rows, batch_size)
  for row in rows:
    if row.tokens.shape != (length,):
      raise ValueError(
        f"A packed row has {row.tokens.shape[0]} tokens, the batch {length}."
      )
  shape = (batch_size, length)
  batch = TargetBatch(
    *(np.zeros(shape, np.int32) for _ in range(3)), np.zeros(shape, np.bool_)
  )
  for i, row in enumerate(rows):
    for stacked, values in zip(batch, row, strict=True):
      stacked[i] = values
  return batch


def collate_preferences(
  rows: Sequence[EncodedPreference],
  length: int,
  batch_size: int | None = None,
  pad_id: int = 0,
) -> PreferenceBatch:
  """Pads pairs on the right to `length`, and the batch to `batch_size` rows."""
  size = _batch_size(rows, batch_size)
  chosen = _pad([row.chosen for row in rows], length, size, pad_id)
  rejected = _pad([row.rejected for row in rows], length, size, pad_id)
  return PreferenceBatch(
    *chosen, *rejected, _prompt_lengths(rows, size), *_validity(rows, size)
  )


def collate_labelled(
  rows: Sequence[EncodedLabelled],
  length: int,
  batch_size: int | None = None,
  pad_id: int = 0,
) -> LabelledBatch:
  """Pads rows on the right to `length`, and the batch to `batch_size` rows."""
  size = _batch_size(rows, batch_size)
  tokens, lengths = _pad([row.tokens for row in rows], length, size, pad_id)
  labels = np.zeros(size, np.float32)
  labels[: len(rows)] = [row.label for row in rows]
  return LabelledBatch(
    tokens,
    lengths,
    _prompt_lengths(rows, size),
    labels,
    *_validity(rows, size),
  )


def collate_prompts(
  rows: Sequence[EncodedPrompt],
  length: int,
  batch_size: int | None = None,
  pad_id: int = 0,
) -> PromptBatch:
  """Pads prompts on the LEFT to `length`, and the batch to `batch_size`."""
  size = _batch_size(rows, batch_size)
  tokens, lengths = _pad(
    [row.tokens for row in rows], length, size, pad_id, left=True
  )
  return PromptBatch(tokens, lengths, *_validity(rows, size))


def _batch_size(rows: Sequence, batch_size: int | None) -> int:
  if batch_size is None:
    return len(rows)
  if len(rows) > batch_size:
    raise ValueError(f"{len(rows)} rows do not fit in a batch of {batch_size}.")
  return batch_size


def _pad(
  sequences: Sequence[Sequence[int]],
  length: int,
  batch_size: int,
  pad_id: int,
  left: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens `[B, length]` and lengths `[B]`.

  Rows that are missing are all padding with length 1, not 0, so that nothing
  that divides by a length, or reads its last token, meets a 0.
  """
  tokens = np.full((batch_size, length), pad_id, np.int32)
  lengths = np.ones(batch_size, np.int32)
  for i, sequence in enumerate(sequences):
    if not 0 < len(sequence) <= length:
      raise ValueError(
        f"A row has {len(sequence)} tokens; the batch takes 1 to {length}."
      )
    start = length - len(sequence) if left else 0
    tokens[i, start : start + len(sequence)] = sequence
    lengths[i] = len(sequence)
  return tokens, lengths


def _prompt_lengths(
  rows: Sequence[EncodedPreference | EncodedLabelled], batch_size: int
) -> np.ndarray:
  lengths = np.ones(batch_size, np.int32)
  lengths[: len(rows)] = [row.prompt_length for row in rows]
  return lengths


def _validity(rows: Sequence, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  index = np.full(batch_size, -1, np.int32)
  index[: len(rows)] = [row.index for row in rows]
  return np.arange(batch_size) < len(rows), index
