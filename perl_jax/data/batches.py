"""Batches: records as tokens, padded to a few fixed lengths.

`encode_*` turns records into rows of tokens (`packing.py` then packs those of
dialogues), `collate_*` turns rows into the arrays that a step takes. A batch is
a NamedTuple of numpy arrays, and therefore a pytree. Lengths and segments say
what is real; the pad id never does.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.text import Tokenization


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


class EncodedPreference(NamedTuple):
  """Tokens of one preference; both sequences begin with the same prompt."""

  chosen: list[int]
  rejected: list[int]
  prompt_length: int
  index: int

  @property
  def length(self) -> int:
    """Tokens of the longer sequence."""
    return max(len(self.chosen), len(self.rejected))

  @property
  def response_length(self) -> int:
    """Number of tokens of the longer response."""
    return self.length - self.prompt_length


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


class EncodedPrompt(NamedTuple):
  """Tokens of one prompt."""

  tokens: list[int]
  index: int

  @property
  def length(self) -> int:
    """Number of tokens."""
    return len(self.tokens)


def encode_demonstrations(
  rows: Iterable[records.Demonstration], tokenization: Tokenization
) -> list[tuple[list[int], list[bool]]]:
  """Tokens and target mask of every dialogue, for `packing.pack_dialogues`."""
  encoded = []
  for row in rows:
    try:
      encoded.append(tokenization.encode_dialog(row.prompt, row.turns))
    except ValueError as error:
      raise ValueError(f"{row.id}: {error}") from error
  return encoded


def encode_preferences(
  rows: Iterable[records.Preference],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
) -> tuple[list[EncodedPreference], dict[str, int]]:
  """Tokens of prompt + response, for both responses of every row.

  Args:
    rows: The records.
    tokenization: The tokenizer.
    limit: Most tokens of a sequence: the largest bucket.
    long: How the prompt of a longer row is shortened (`encode_prompt`); the
      same for both responses. Responses are never shortened.

  Returns:
    The rows, and how much was left out: {"truncated_rows", "dropped_turns",
    "cut_tokens"}.

  Raises:
    ValueError: Names the row that does not fit.
  """
  encoded, counts = [], _no_cuts()
  for index, row in enumerate(rows):
    prompt, (chosen, rejected) = _encode_row(
      row, (row.chosen, row.rejected), tokenization, limit, long, counts
    )
    encoded.append(
      EncodedPreference(prompt + chosen, prompt + rejected, len(prompt), index)
    )
  return encoded, counts


def encode_labelled(
  rows: Iterable[records.Labelled],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
) -> tuple[list[EncodedLabelled], dict[str, int]]:
  """Tokens of prompt + response; see `encode_preferences`."""
  encoded, counts = [], _no_cuts()
  for index, row in enumerate(rows):
    prompt, (response,) = _encode_row(
      row, (row.response,), tokenization, limit, long, counts
    )
    encoded.append(
      EncodedLabelled(prompt + response, len(prompt), float(row.label), index)
    )
  return encoded, counts


def encode_prompts(
  rows: Iterable[records.Prompt],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
) -> tuple[list[EncodedPrompt], dict[str, int]]:
  """Tokens of the prompts; see `encode_preferences`."""
  encoded, counts = [], _no_cuts()
  for index, row in enumerate(rows):
    prompt, _ = _encode_row(row, (), tokenization, limit, long, counts)
    encoded.append(EncodedPrompt(prompt, index))
  return encoded, counts


def _no_cuts() -> dict[str, int]:
  return {"truncated_rows": 0, "dropped_turns": 0, "cut_tokens": 0}


def _encode_row(
  row: records.Preference | records.Labelled | records.Prompt,
  responses: Sequence[str],
  tokenization: Tokenization,
  limit: int,
  long: str,
  counts: dict[str, int],
) -> tuple[list[int], list[list[int]]]:
  """Prompt, shortened so that every response fits after it, and responses."""
  try:
    encoded = [tokenization.encode_response(row.prompt, r) for r in responses]
    longest = max(map(len, encoded), default=0)
    if longest >= limit:
      raise ValueError(
        f"A response has {longest} tokens, which leaves nothing for the prompt "
        f"within the limit of {limit}. Raise the limit or leave the row out; "
        "responses are never shortened."
      )
    prompt, flags = tokenization.encode_prompt(
      row.prompt, limit - longest, long
    )
  except ValueError as error:
    raise ValueError(f"{row.id}: {error}") from error
  counts["truncated_rows"] += any(flags.values())
  for key, value in flags.items():
    counts[key] += value
  return prompt, encoded


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
