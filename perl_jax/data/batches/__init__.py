"""Batches: one file for each shape of data, and the table of those shapes.

`KINDS` has an entry for every kind of record that becomes an item of a batch,
or one for each of its responses. Prompts are padded to one of a few lengths;
prompts with responses are packed, see `packed_responses`. Demonstrations are
not in it: several of them are packed into one row of a fixed length once
(`packing`), so their batches have no buckets and no index of records.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from perl_jax.data.batches import candidates, labelled, preferences, prompts


@dataclasses.dataclass(frozen=True)
class Kind:
  """How records of one kind become batches.

  Attributes:
    encode: `encode(records, tokenization, limit, long, closed, bad) -> (rows,
      counts)`. Rows have at most `limit` tokens; each has a `length` and a
      `response_length` in tokens, the `index` of its record, and its `parts`
      to show. `long` says how longer records are shortened, and `counts` how
      many were. `closed` says how responses end, and `bad` takes the records
      that cannot be used.
    responses: Number of responses of a row, which are packed; 0 where rows are
      prompts, which are padded.
    limit: The config field of `data` that holds the most tokens of a row.
  """

  encode: Callable[..., tuple[list[Any], dict[str, int]]]
  responses: int = 0
  limit: str = "max_len"


KINDS: Mapping[str, Kind] = {
  "preferences": Kind(preferences.encode_preferences, responses=2),
  "labelled": Kind(labelled.encode_labelled, responses=1),
  "candidates": Kind(candidates.encode_candidates, responses=1),
  "prompts": Kind(prompts.encode_prompts, limit="prompt_len"),
}
