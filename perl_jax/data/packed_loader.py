"""Batches of prompts with their responses, packed into rows.

Which items are in a training batch is the loader's matter, as for padded rows;
in which row they are depends on their lengths alone, see `row_plans`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from perl_jax.data.batches import row_plans
from perl_jax.data.batches.common import bucket_for
from perl_jax.data.batches.member_rows import Subsets
from perl_jax.data.batches.packed_responses import (
  Item,
  Layout,
  PackedResponses,
)
from perl_jax.data.loader import full_buckets, rows_of

Plan = Sequence[Sequence[int]]
# Rows of an evaluation are so many times as long as they have to be, whichever
# is the cheapest: in longer rows items fit together better.
_LONGER = (1.0, 1.1, 1.25, 1.5)


@dataclasses.dataclass(frozen=True)
class TrainPacker:
  """Makes a training batch of its items; the `collate` of `train_batches`.

  Attributes:
    layout: How items lie in rows.
    rows: N, rows of the global batch, by the bucket of its items.
    shards, shard_count: What this process reads; see `loader.train_batches`.
    members: Picks the items of each member of an ensemble. A batch then has
      leaves `[N, members, ...]`; None makes one batch of all items.
  """

  layout: Layout
  rows: Mapping[int, int]
  shards: Sequence[int] = (0,)
  shard_count: int = 1
  members: Subsets | None = None

  def __call__(
    self, items: Sequence[Item], length: int, batch_size: int
  ) -> PackedResponses:
    """Packs all items of a batch, and fills the rows of this process."""
    del batch_size  # a whole batch is packed
    rows = self.rows[length]
    if self.members is None:
      return self._pack([items], rows)[0]
    places = self.members(np.array([item.index for item in items]))
    packed = self._pack([[items[i] for i in mine] for mine in places], rows)
    return PackedResponses(
      *(np.stack(arrays, axis=1) for arrays in zip(*packed, strict=True))
    )

  def _pack(
    self, groups: Sequence[Sequence[Item]], rows: int
  ) -> list[PackedResponses]:
    """Batches of the same shape, one for each group of as many items."""
    plans = [
      row_plans.balanced(list(map(self.layout.length, items)), rows)
      for items in groups
    ]
    mine = rows_of(self.shards, self.shard_count, rows)
    room = row_plans.most_in_a_row(len(groups[0]), rows)
    pairs = list(zip(groups, plans, strict=True))
    lengths, targets = zip(
      *(self.layout.needed(*pair) for pair in pairs), strict=True
    )
    needed = max(lengths), max(targets)
    return [self.layout.pack(*pair, room, mine, needed) for pair in pairs]


def train_packer(
  layout: Layout,
  items: Sequence[Item],
  lengths: Sequence[int],
  batch_size: int,
  buckets: Sequence[int],
  multiple: int,
  shards: Sequence[int] = (0,),
  shard_count: int = 1,
  members: Subsets | None = None,
) -> TrainPacker:
  """The packer of a run, with numbers of rows that suit its data.

  Args:
    layout: How items lie in rows.
    items: All training items.
    lengths: Number of tokens of each item, by which it is in a bucket.
    batch_size: Number of items of the global batch.
    buckets: Lengths in tokens; a batch has items of one of them.
    multiple: The number of rows is a multiple of it: the microbatches, each cut
      into the parts that the mesh asks for.
    shards, shard_count, members: See `TrainPacker`.

  Raises:
    ValueError: Fewer items than a batch, or one longer than every bucket.
  """
  share = 1.0 if members is None else members.share
  rows = {
    bucket: row_plans.row_count(
      [layout.length(items[i]) for i in group],
      round(share * batch_size),
      multiple,
      layout.block,
    )
    for bucket, group in full_buckets(lengths, batch_size, buckets).items()
  }
  return TrainPacker(layout, rows, shards, shard_count, members)


class EvalBatches:
  """Passes over all items, each of them once, from short to long.

  Items of one bucket are packed into rows of one length, so that few programs
  are compiled. What does not fill a batch is packed with those of the next
  bucket. A pass is an iterator: call the object for each.
  """

  def __init__(
    self,
    layout: Layout,
    items: Sequence[Item],
    lengths: Sequence[int],
    batch_size: int,
    buckets: Sequence[int],
    shards: Sequence[int] = (0,),
    shard_count: int = 1,
  ):
    """Plans the batches.

    Args:
      layout: How items lie in rows.
      items: The items.
      lengths: Length by which each is in a bucket.
      batch_size: Items in a batch, about.
      buckets: Most lengths of each kind of batch.
      shards, shard_count: What this process reads; see `loader.train_batches`.

    Raises:
      ValueError: An item is longer than every bucket, or the batch size cannot
        be cut into the parts.
    """
    rows_of(shards, shard_count, batch_size)
    self._layout, self._items = layout, items
    sizes = [layout.length(item) for item in items]
    mean = sum(sizes) // max(len(sizes), 1)
    rows = row_plans.fewest_rows(batch_size, mean, shard_count)
    self._mine = rows_of(shards, shard_count, rows)
    self._room = row_plans.most_in_a_row(batch_size, rows)
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
      groups.setdefault(bucket_for(length, buckets), []).append(i)
    self._plans: list[tuple[Plan, tuple[int, int]]] = []
    left: list[int] = []
    for number, bucket in enumerate(sorted(groups), 1):
      last = number == len(groups)
      left = self._plan([*left, *groups[bucket]], sizes, rows, batch_size, last)

  def _plan(self, group, sizes, rows, batch_size, last) -> list[int]:
    """Plans batches of a bucket's items; returns those that fill none."""
    own = [sizes[i] for i in group]
    shortest = max(max(own), round(sum(own) / len(own) * batch_size / rows))
    columns = [
      row_plans.rounded(round(times * shortest), self._layout.block)
      for times in _LONGER
    ]
    fits = {n: row_plans.best_fit(own, n, self._room) for n in columns}
    length = min(fits, key=lambda n: row_plans.cost(len(fits[n]), n))
    plan = [[group[i] for i in row] for row in fits[length]]
    end = len(plan) if last else len(plan) - len(plan) % rows
    for start in range(0, end, rows):
      batch = plan[start : start + rows]
      batch += [[] for _ in range(rows - len(batch))]
      _, targets = self._layout.needed(self._items, batch)
      self._plans.append((batch, (length, targets)))
    return [i for row in plan[end:] for i in row]

  def __len__(self) -> int:
    return len(self._plans)

  def __call__(self) -> Iterator[PackedResponses]:
    """The batches of a pass, the rows of this process."""
    for plan, needed in self._plans:
      yield self._layout.pack(self._items, plan, self._room, self._mine, needed)
