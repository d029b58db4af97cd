"""Records as rows of tokens, shortened where they are too long."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perl_jax.data import records
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text.tokenization import Tokenization

LONG = (*tokenization_lib.LONG, "drop")


def no_cuts() -> dict[str, int]:
  """Zero counts of everything that shortening may remove."""
  names = ("truncated_rows", "dropped_turns", "cut_tokens", "too_long_dropped")
  return dict.fromkeys(names, 0)


def encode_row(
  row: records.Record,
  responses: Sequence[str],
  tokenization: Tokenization,
  limit: int,
  long: str,
  counts: dict[str, int],
) -> tuple[list[int], list[list[int]]] | None:
  """Prompt, shortened so that every response fits after it, and responses.

  None for a row that is left out.
  """
  if long not in LONG:
    raise ValueError(f"long={long!r} is none of {', '.join(LONG)}.")
  try:
    encoded = [tokenization.encode_response(row.prompt, r) for r in responses]
    longest = max(map(len, encoded), default=0)
    if longest >= limit:
      raise tokenization_lib.TooLongError(
        f"A response has {longest} tokens, which leaves nothing for the prompt "
        f"within the limit of {limit}. Raise the limit, or set long to 'drop' "
        "to leave such rows out; responses are never shortened."
      )
    prompt, flags = tokenization.encode_prompt(
      row.prompt, limit - longest, "cut" if long == "drop" else long
    )
  except ValueError as error:
    if long == "drop" and isinstance(error, tokenization_lib.TooLongError):
      counts["too_long_dropped"] += 1
      return None
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


def padded_size(rows: Sequence, batch_size: int | None) -> int:
  """Number of rows of the batch once it is padded; None adds none.

  Raises:
    ValueError: There are more rows than the batch holds.
  """
  if batch_size is None:
    return len(rows)
  if len(rows) > batch_size:
    raise ValueError(f"{len(rows)} rows do not fit in a batch of {batch_size}.")
  return batch_size


def pad(
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


def prompt_lengths(rows: Sequence[Any], batch_size: int) -> np.ndarray:
  """Prompt lengths in tokens, `[B]` int32; 1 on rows that only pad."""
  lengths = np.ones(batch_size, np.int32)
  lengths[: len(rows)] = [row.prompt_length for row in rows]
  return lengths


def validity(rows: Sequence, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """(valid `[B]` bool, index `[B]` int32): padding rows are False and -1."""
  index = np.full(batch_size, -1, np.int32)
  index[: len(rows)] = [row.index for row in rows]
  return np.arange(batch_size) < len(rows), index
