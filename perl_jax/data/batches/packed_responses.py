"""Prompts with their responses, several of them in each row of a batch.

A prompt and its one or two responses are an item. The items of a batch are
dealt out over rows of nearly equal length, so that little is padding, and a
prompt of two responses is in its row once. An item with two responses, and one
with a single response:

  tokens     p p p a a b b b   q q c c  .
  positions  0 1 2 3 4 3 4 5   0 1 2 3  0
  segments   P P P + +         + + + +  0

A prompt of several responses is their prefix, see `perl_jax.segments`; a single
response continues the segment of its prompt.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from perl_jax.data.batches import row_plans
from perl_jax.segments import PREFIX


class Item(Protocol):
  """An encoded row of data: a prompt with its responses, as token ids."""

  prompt: Sequence[int]
  responses: Sequence[Sequence[int]]
  label: float
  index: int


class PackedResponses(NamedTuple):
  """N rows of L tokens, with up to P items of K responses in each.

  Attributes:
    tokens: `[N, L]`, int32.
    positions: `[N, L]`, int32; counted from 0 in each prompt, and on from there
      in each of its responses.
    segments: `[N, L]`, int32; see `perl_jax.segments`.
    targets: Columns of the tokens of all responses of a row, `[N, C]`, int32; C
      is 0 where their probabilities are not asked for.
    before: Column of the token before each of them, `[N, C]`, int32: before the
      first token of a response it is the last of the prompt.
    offsets: Where the tokens of a response begin in `targets`, `[N, P, K]`,
      int32.
    counts: Tokens of each response, `[N, P, K]`, int32; 0 where there is none.
    last: Column of the last token of each response, `[N, P, K]`, int32.
    labels: `[N, P]`, float32; 1.0 for a good response, 0.0 for a bad one, where
      items have labels.
    valid: `[N, P]`, bool; false where there is no item.
    index: `[N, P]`, int32; position of the record in the data, -1 if not valid.
  """

  tokens: np.ndarray
  positions: np.ndarray
  segments: np.ndarray
  targets: np.ndarray
  before: np.ndarray
  offsets: np.ndarray
  counts: np.ndarray
  last: np.ndarray
  labels: np.ndarray
  valid: np.ndarray
  index: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Number of tokens without padding, a shared prompt counted once."""
    return int((self.segments != 0).sum())

  def places(self) -> Iterator[tuple[int, tuple[int, int]]]:
    """(`index`, (n, p)) of each item of a batch on the host."""
    for n, p in zip(*np.nonzero(self.valid), strict=True):
      yield int(self.index[n, p]), (n, p)


@dataclasses.dataclass(frozen=True)
class Layout:
  """How items lie in rows, the same for all batches of a run.

  Attributes:
    responses: K, number of responses of an item.
    shared: Whether a prompt is in its row once. Otherwise each response follows
      a copy of it, in a segment of its own.
    targets: Whether the probabilities of the responses are asked for.
    block: Rows have a multiple of this number of tokens.
    pad_id: Token that pads.
  """

  responses: int
  shared: bool = True
  targets: bool = False
  block: int = row_plans.BLOCK
  pad_id: int = 0

  def length(self, item: Item) -> int:
    """Columns that an item takes."""
    prompts = 1 if self.shared else self.responses
    return prompts * len(item.prompt) + sum(map(len, item.responses))

  def shape(
    self, rows: int, items: int, length: int, targets: int
  ) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of a batch.

    Args:
      rows: N.
      items: P.
      length: Tokens of the longest row, before they are rounded up to L.
      targets: Most response tokens of a row, before they are rounded up to C.
    """
    length = row_plans.rounded(length, self.block)
    quarter = -(-length // 4)
    columns = -(-targets // quarter) * quarter if self.targets else 0
    columns = min(columns, length)
    each, sides = (rows, items), (rows, items, self.responses)
    return {
      "tokens": ((rows, length), np.int32),
      "positions": ((rows, length), np.int32),
      "segments": ((rows, length), np.int32),
      "targets": ((rows, columns), np.int32),
      "before": ((rows, columns), np.int32),
      "offsets": (sides, np.int32),
      "counts": (sides, np.int32),
      "last": (sides, np.int32),
      "labels": (each, np.float32),
      "valid": (each, np.bool_),
      "index": (each, np.int32),
    }

  def needed(
    self, items: Sequence[Item], plan: Sequence[Sequence[int]]
  ) -> tuple[int, int]:
    """Tokens of the longest row of a plan, and most response tokens of a row.

    Args:
      items: All items that the plan is about.
      plan: The numbers of the items of each row.
    """
    lengths, targets = (
      [sum(size(items[i]) for i in row) for row in plan]
      for size in (self.length, _response_tokens)
    )
    return max(lengths, default=0), max(targets, default=0)

  def pack(
    self,
    items: Sequence[Item],
    plan: Sequence[Sequence[int]],
    room: int,
    mine: Sequence[int] | None = None,
    needed: tuple[int, int] | None = None,
  ) -> PackedResponses:
    """Lays items out in rows.

    Args:
      items: All items that the plan is about.
      plan: The numbers of the items of each row of the global batch.
      room: P.
      mine: The rows that are filled and returned; all by default.
      needed: As `needed` gives it, or more; None asks it.
    """
    mine = range(len(plan)) if mine is None else mine
    needed = needed or self.needed(items, plan)
    shape = self.shape(len(mine), room, *needed)
    batch = PackedResponses(**{k: np.zeros(*v) for k, v in shape.items()})
    batch.tokens.fill(self.pad_id)
    batch.index.fill(-1)
    for n, row in enumerate(mine):
      writer = _Row(self, PackedResponses(*(array[n] for array in batch)))
      for number in plan[row]:
        writer.add(items[number])
    return batch


def unpack(batch: PackedResponses) -> dict[int, list[list[int]]]:
  """Tokens of each prompt with its response, by the item's `index`.

  Args:
    batch: A batch on the host, without members.
  """
  found = {}
  for index, (n, p) in batch.places():
    sequences = found[index] = []
    for last in batch.last[n, p]:
      segment = batch.segments[n, last]
      mine = np.isin(batch.segments[n], (segment, segment - segment % PREFIX))
      mine &= batch.segments[n] != 0
      sequences.append(batch.tokens[n, mine].tolist())
  return found


def _response_tokens(item: Item) -> int:
  return sum(map(len, item.responses))


class _Row:
  """Fills one row, whose arrays are views of those of the batch."""

  def __init__(self, layout: Layout, row: PackedResponses):
    self._layout, self._row = layout, row
    self._column = self._item = self._target = self._segment = 0

  def add(self, item: Item) -> None:
    row, place = self._row, self._item
    row.labels[place] = item.label
    row.valid[place], row.index[place] = True, item.index
    shared = self._layout.shared and self._layout.responses > 1
    start = len(item.prompt)
    if shared:
      prefix = PREFIX * (place + 1)
      self._write(item.prompt, 0, prefix)
      before = self._column - 1
    for k, response in enumerate(item.responses):
      if shared:
        self._write(response, start, prefix + 1 + k)
      else:
        self._segment += 1
        self._write(item.prompt, 0, self._segment)
        self._write(response, start, self._segment)
        before = self._column - len(response) - 1
      self._point(place, k, before, len(response))
    self._item += 1

  def _write(self, tokens, position, segment):
    row, end = self._row, self._column + len(tokens)
    columns = slice(self._column, end)
    row.tokens[columns] = tokens
    row.positions[columns] = np.arange(position, position + len(tokens))
    row.segments[columns] = segment
    self._column = end

  def _point(self, place, k, before, count):
    """Says where a response lies that ends in front of the next column."""
    row, end = self._row, self._column
    row.counts[place, k] = count
    row.last[place, k] = end - 1 if count else before
    row.offsets[place, k] = self._target
    if not self._layout.targets or not count:
      return
    columns = np.arange(end - count, end)
    into = slice(self._target, self._target + count)
    row.targets[into] = columns
    row.before[into] = np.concatenate([[before], columns[:-1]])
    self._target += count
