"""Batches: one file for each shape of data, and the table of those shapes.

`KINDS` has an entry for every kind of record that becomes a row of a batch, or
one for each of its responses, padded to one of a few lengths. Demonstrations
are not in it: several of them are packed into one row of a fixed length
(`packing`), so their batches have no buckets and no index of records.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from perl_jax.data.batches import candidates, labelled, preferences, prompts


@dataclasses.dataclass(frozen=True)
class Kind:
  """How records of one kind become padded batches.

  Attributes:
    encode: `encode(records, tokenization, limit, long, closed, bad) -> (rows,
      counts)`. Rows have at most `limit` tokens; each has a `length` and a
      `response_length` in tokens, the `index` of its record, and its `parts`
      to show. `long` says how longer records are shortened, and `counts` how
      many were. `closed` says how responses end, and `bad` takes the records
      that cannot be used.
    collate: `collate(rows, length, batch_size, pad_id) -> batch`. Pads rows to
      `length` tokens, and their number to `batch_size`.
    limit: The config field of `data` that holds the most tokens of a row.
  """

  encode: Callable[..., tuple[list[Any], dict[str, int]]]
  collate: Callable[..., Any]
  limit: str = "max_len"


KINDS: Mapping[str, Kind] = {
  "preferences": Kind(
    preferences.encode_preferences, preferences.collate_preferences
  ),
  "labelled": Kind(labelled.encode_labelled, labelled.collate_labelled),
  "candidates": Kind(candidates.encode_candidates, labelled.collate_labelled),
  "prompts": Kind(
    prompts.encode_prompts, prompts.collate_prompts, limit="prompt_len"
  ),
}
