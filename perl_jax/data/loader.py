"""Shuffling, length buckets and sharding by process, with Grain.

Rows of similar length are put into the same batch, which is padded to one of a
few lengths. Batches depend on (rows, seed, step) alone: the position of a
training run is one integer, and resuming does not read earlier batches again.
Which length a step has does not depend on the seed, so that runs of several
seeds, which make their steps together, need little padding for each other.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from perl_jax.data.batches.common import bucket_for

Row = Any
Batch = Any

# In a position: how the batches of all buckets are mixed. A position without it
# is of a run that was begun when the run's seed mixed them, as 1 does still.
ORDER = "order"
_BY_SEED, _SAME_FOR_ALL = 1, 2


class Collate(Protocol):
  """Function that makes a batch of `batch_size` rows out of at most as many."""

  def __call__(
    self, rows: Sequence[Row], length: int, batch_size: int
  ) -> Batch:
    """Pads `rows` to `length` tokens, and their number to `batch_size`."""


class TrainBatches(Iterator[Batch]):
  """Endless batches with a position that can be saved and restored.

  Attributes:
    batches_per_epoch: Number of batches in which every row occurs once, except
      for the remainder (fewer rows than a batch, different in each epoch).
  """

  def __init__(
    self,
    batches: grain.MapDataset,
    assemble: Callable[[tuple[int, list[int]]], Batch],
    identity: dict[str, int],
    mixes: Mapping[int, int],
  ) -> None:
    """Starts at the first batch.

    Args:
      batches: The batches of an epoch as (bucket, numbers of rows), one bucket
        after the other.
      assemble: Function that makes a batch of such a pair.
      identity: Numbers that the batches depend on, by name, such as the seed.
      mixes: Seeds that shuffle the batches of an epoch, by value of `ORDER`.
    """
    self.batches_per_epoch = len(batches)
    self._batches, self._assemble = batches, assemble
    self._identity, self._mixes = identity, mixes
    self._mix(_SAME_FOR_ALL)

  def _mix(self, order: int) -> None:
    """Goes to the first batch in one of the orders."""
    # No threads: a batch costs little, and this way nothing is left running.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    mixed = self._batches.shuffle(self._mixes[order])
    self._order, self._endless = order, mixed.repeat().map(self._assemble)
    self._iterator = iter(self._endless.to_iter_dataset(options))

  def __next__(self) -> Batch:
    return next(self._iterator)

  def again(self) -> "TrainBatches":
    """The same batches from the first on, with a position of their own."""
    return TrainBatches(
      self._batches, self._assemble, self._identity, self._mixes
    )

  def at(self, number: int) -> Batch:
    """The batch of a number, from 0; the position stays where it is."""
    return self._endless[number]

  def get_state(self) -> dict[str, int]:
    """Returns the position for a checkpoint, as plain JSON."""
    order = {ORDER: self._order}
    return self._identity | order | self._iterator.get_state()

  def set_state(self, state: dict[str, int]) -> None:
    """Continues after the batch at which `state` was saved, in constant time.

    It does so in the order that the run was begun in.

    Raises:
      ValueError: The state was saved with other data, another seed or another
        batch size.
    """
    state = dict(state)
    position = {
      key: state.pop(key) for key in self._iterator.get_state() if key in state
    }
    order = state.pop(ORDER, _BY_SEED)
    if state != self._identity or not position:
      raise ValueError(
        f"The position to resume from was saved with {state}, but this run has "
        f"{self._identity}. Resume with the data, seed and batch size of the "
        "saved run, or start in another workdir."
      )
    if order not in self._mixes:
      raise ValueError(
        f"The position to resume from is in an order of batches ({order}) that"
        " this version does not know: resume with the version that saved it."
      )
    self._mix(order)
    self._iterator.set_state(position)


def train_batches(
  rows: Sequence[Row],
  lengths: Sequence[int],
  batch_size: int,
  buckets: Sequence[int],
  collate: Collate,
  seed: int,
  shards: Sequence[int] = (0,),
  shard_count: int = 1,
  *,
  whole: bool = False,
) -> TrainBatches:
  """Returns endless shuffled batches, in a different order in every epoch.

  A batch has rows of one bucket; see `full_buckets`. Only the last bucket has a
  remainder, which consists of different rows in each epoch.

  Args:
    rows: Rows as `collate` takes them.
    lengths: Number of tokens of each row.
    batch_size: Number of rows of the global batch, over all processes.
    buckets: Lengths in tokens that a batch may be padded to.
    collate: Called with the rows of this process, the bucket and the number of
      rows that the batch must have; if `whole`, with all rows of the batch.
    seed: Seed of which rows of a bucket are in which of its batches. In which
      order the buckets come is the same for all seeds.
    shards: Numbers of the parts of each batch that this process reads. All
      processes see the same bucket at the same step, and their parts together
      are the global batch.
    shard_count: Number of equal parts, of successive rows, that a batch is cut
      into.
    whole: Whether `collate` picks what this process reads.

  Raises:
    ValueError: Fewer rows than a batch, a row longer than every bucket, or a
      batch size that cannot be cut into the parts.
  """
  mine = rows_of(shards, shard_count, batch_size)
  if whole:
    mine = range(batch_size)
  parts = []
  groups = full_buckets(lengths, batch_size, buckets)
  for number, (bucket, indices) in enumerate(groups.items()):
    parts.append(
      grain.MapDataset.source(indices)
      .shuffle(_derive(seed, number))
      .batch(batch_size, drop_remainder=True, batch_fn=list)
      .map(lambda batch, bucket=bucket: (bucket, batch))
    )
  batches = grain.MapDataset.concatenate(parts)
  mixes = {_BY_SEED: _derive(seed, len(parts)), _SAME_FOR_ALL: 0}

  def assemble(batch: tuple[int, list[int]]) -> Batch:
    bucket, indices = batch
    return collate([rows[indices[i]] for i in mine], bucket, len(mine))

  identity = {
    "rows": len(rows),
    "tokens": int(sum(lengths)),
    "batch_size": batch_size,
    "batches_per_epoch": len(batches),
    "seed": seed,
  }
  return TrainBatches(batches, assemble, identity, mixes)


def eval_batches(
  rows: Sequence[Row],
  lengths: Sequence[int],
  batch_size: int,
  buckets: Sequence[int],
  collate: Collate,
  shards: Sequence[int] = (0,),
  shard_count: int = 1,
) -> Iterator[Batch]:
  """Yields every row exactly once, from short to long, in a fixed order.

  Each batch has `batch_size` rows (over all processes) and is padded to the
  bucket of its longest row; `collate` pads the last batch to `batch_size` rows.
  The arguments are those of `train_batches`.

  Raises:
    ValueError: A row is longer than every bucket, or the batch size cannot be
      cut into the parts.
  """
  mine = rows_of(shards, shard_count, batch_size)
  order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
  if len(order):
    bucket_for(int(lengths[order[-1]]), buckets)  # Fail now, not at the end.
  return _eval_batches(
    rows,
    lengths,
    [order[i : i + batch_size] for i in range(0, len(order), batch_size)],
    buckets,
    collate,
    mine,
  )


def _eval_batches(
  rows: Sequence[Row],
  lengths: Sequence[int],
  batches: Sequence[np.ndarray],
  buckets: Sequence[int],
  collate: Collate,
  mine: Sequence[int],
) -> Iterator[Batch]:
  for indices in batches:
    bucket = bucket_for(int(lengths[indices[-1]]), buckets)
    local = [rows[int(indices[i])] for i in mine if i < len(indices)]
    yield collate(local, bucket, len(mine))


def rows_of(
  shards: Sequence[int], shard_count: int, batch_size: int
) -> list[int]:
  """Returns the positions in a batch of the rows of some of its parts."""
  if batch_size < 1 or batch_size % shard_count:
    raise ValueError(
      f"batch_size={batch_size} is not a positive multiple of the"
      f" {shard_count} parts that the mesh cuts it into."
    )
  if not shards or not set(shards) <= set(range(shard_count)):
    raise ValueError(f"shards={shards} are not some of {shard_count} parts.")
  size = batch_size // shard_count
  return [s * size + i for s in sorted(shards) for i in range(size)]


def full_buckets(
  lengths: Sequence[int], batch_size: int, buckets: Sequence[int]
) -> dict[int, list[int]]:
  """Returns row numbers by bucket, at least a batch of them in each.

  A row belongs to the smallest bucket that holds it. So that no bucket drops
  a remainder, the longest rows that do not fill a batch of their bucket move up
  into the next one: all buckets but the last have a multiple of the batch size.

  Args:
    lengths: Number of tokens of each row.
    batch_size: Number of rows of the global batch.
    buckets: Lengths in tokens that a batch may be padded to.

  Raises:
    ValueError: Fewer rows than a batch, or a row longer than every bucket.
  """
  if len(lengths) < batch_size:
    raise ValueError(
      f"There are {len(lengths)} training rows, fewer than one batch of "
      f"batch_size={batch_size}. Lower batch_size, or give more rows (data.*)."
    )
  sizes = sorted(set(buckets))
  groups: dict[int, list[int]] = {size: [] for size in sizes}
  order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
  for i in order:
    groups[bucket_for(int(lengths[i]), sizes)].append(int(i))
  for size, larger in itertools.pairwise(sizes):
    group = groups[size]
    whole = len(group) - len(group) % batch_size
    groups[larger] = group[whole:] + groups[larger]
    groups[size] = group[:whole]
  groups = {size: group for size, group in groups.items() if group}
  *_, last = groups
  if len(groups[last]) < batch_size:
    # Its rows would never be seen, so it takes a batch from the one below.
    below = list(groups)[-2]
    groups[last] = groups[below][-batch_size:] + groups[last]
    groups[below] = groups[below][:-batch_size]
  return {size: sorted(group) for size, group in groups.items() if group}


def _derive(seed: int, number: int) -> int:
  # Grain adds the epoch to the seed: seeds close together would share orders.
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
