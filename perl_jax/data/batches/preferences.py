"""Preference pairs: a prompt with a chosen and a rejected response."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.records import text_of
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


class EncodedPreference(NamedTuple):
  """Tokens of one preference; both sequences begin with the same prompt."""

  chosen: np.ndarray
  rejected: np.ndarray
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
  def prompt(self) -> np.ndarray:
    """The tokens that both sequences begin with."""
    return self.chosen[: self.prompt_length]

  @property
  def responses(self) -> tuple[np.ndarray, np.ndarray]:
    """The chosen and the rejected response."""
    start = self.prompt_length
    return self.chosen[start:], self.rejected[start:]

  @property
  def label(self) -> float:
    """A pair has none: 0."""
    return 0.0

  @property
  def parts(self) -> list[common.Part]:
    """The prompt and both responses."""
    chosen, rejected = self.responses
    return [
      ("prompt", self.prompt, False),
      ("chosen", chosen, True),
      ("rejected", rejected, True),
    ]


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
    sides = common.held(prompt + chosen), common.held(prompt + rejected)
    encoded.append(EncodedPreference(*sides, len(prompt), index))
  return encoded, counts
