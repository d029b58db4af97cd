"""Preference pairs: a prompt with a chosen and a rejected response."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.records import text_of
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


class PreferenceBatch(NamedTuple):
  """Pairs of prompts followed by a response, padded on the right.

  Attributes:
    chosen_tokens: `[B, T]`, int32.
    chosen_lengths: `[B]`, int32; tokens of prompt and response.
    rejected_tokens: `[B, T]`, int32; begins with the same prompt as chosen.
    rejected_lengths: `[B]`, int32; tokens of prompt and response.
    prompt_lengths: `[B]`, int32; tokens of the prompt that both begin with.
    valid: `[B]`, bool; false on padding rows.
    index: `[B]`, int32; position of the record in the data, -1 if not valid.
  """

  chosen_tokens: np.ndarray
  chosen_lengths: np.ndarray
  rejected_tokens: np.ndarray
  rejected_lengths: np.ndarray
  prompt_lengths: np.ndarray
  valid: np.ndarray
  index: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Number of tokens without padding, the prompt counted on both sides."""
    both = self.chosen_lengths + self.rejected_lengths
    return int(both[self.valid].sum())


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

  @property
  def parts(self) -> list[common.Part]:
    """The prompt and both responses."""
    return [
      ("prompt", self.chosen[: self.prompt_length], False),
      ("chosen", self.chosen[self.prompt_length :], True),
      ("rejected", self.rejected[self.prompt_length :], True),
    ]


def collate_preferences(
  rows: Sequence[EncodedPreference],
  length: int,
  batch_size: int | None = None,
  pad_id: int = 0,
) -> PreferenceBatch:
  """Pads pairs on the right to `length`, and the batch to `batch_size` rows."""
  size = common.padded_size(rows, batch_size)
  chosen = common.pad([row.chosen for row in rows], length, size, pad_id)
  rejected = common.pad([row.rejected for row in rows], length, size, pad_id)
  return PreferenceBatch(
    *chosen,
    *rejected,
    common.prompt_lengths(rows, size),
    *common.validity(rows, size),
  )


def encode_preferences(
  rows: Iterable[records.Preference],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
  closed: bool = False,
  bad: Unusable | None = None,
) -> tuple[list[EncodedPreference], dict[str, int]]:
  """Encodes prompt and response, for both responses of every row.

  Pairs whose responses are the same tokens, once the template has trimmed them,
  say nothing and are left out.

  Args:
    rows: The records.
    tokenization: The tokenizer and its chat template.
    limit: Most tokens of a sequence, which is the largest bucket.
    long: How the prompt of a longer row is shortened (see
      `Tokenization.encode_prompt`), in the same way for both responses.
      Responses are never shortened. A row that still does not fit is left out,
      except with "error".
    closed: Whether prompt and response are a conversation that the response
      ends, as a reward model may read it; see `Tokenization.encode_response`.
    bad: Takes the rows that are left out; see `common.encode_row`.

  Returns:
    The rows, and counts of what was left out: {"truncated_rows",
    "dropped_turns", "cut_tokens", "too_long_dropped"}, and "ties_dropped" if
    there are any.

  Raises:
    ValueError: A row does not fit; names the row.
  """
  encoded, counts = [], common.no_cuts()
  for index, row in enumerate(rows):
    found = common.encode_row(
      row,
      (row.chosen, row.rejected),
      tokenization,
      limit,
      long,
      counts,
      closed,
      bad=bad,
    )
    if found is None:
      continue
    prompt, (chosen, rejected) = found
    if chosen == rejected:
      counts["ties_dropped"] = counts.get("ties_dropped", 0) + 1
      if bad is not None:
        bad.add(
          f"{row.id}: both are {text_of(row.chosen)[:40]!r}",
          "whose replies are equal once the chat template has trimmed them",
        )
      continue
    encoded.append(
      EncodedPreference(prompt + chosen, prompt + rejected, len(prompt), index)
    )
  return encoded, counts
