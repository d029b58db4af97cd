"""Responses to score: an item of a batch for each response of a record.

A response without a label has 0.
"""

from collections.abc import Iterable

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.batches.labelled import EncodedLabelled
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


def encode_candidates(
  rows: Iterable[records.Candidates],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
  closed: bool = False,
  bad: Unusable | None = None,
) -> tuple[list[EncodedLabelled], dict[str, int]]:
  """Encodes prompt and response, for every response of every row.

  `index` counts the responses of all rows, those of rows that are left out
  included. A prompt is shortened in the same way for all responses to it; see
  `preferences.encode_preferences` for the arguments.
  """
  encoded, counts = [], common.no_cuts()
  first = 0
  for row in rows:
    found = common.encode_row(
      row, row.responses, tokenization, limit, long, counts, closed, bad=bad
    )
    if found is not None:
      prompt, responses = found
      encoded += [
        EncodedLabelled(
          common.held(prompt + response),
          len(prompt),
          row.label or 0.0,
          first + number,
        )
        for number, response in enumerate(responses)
      ]
    first += len(row.responses)
  return encoded, counts
