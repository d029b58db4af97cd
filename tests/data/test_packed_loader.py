"""Packed batches: the loader's items, on every process, and passes over all."""

import numpy as np
import pytest

from perl_jax.data import loader, packed_loader
from perl_jax.data.batches.member_rows import Subsets
from perl_jax.data.batches.packed_responses import Layout
from perl_jax.data.batches.preferences import EncodedPreference

LAYOUT = Layout(responses=2)
BUCKETS = (24, 48, 96)


def pairs(count=200):
  rng = np.random.default_rng(0)
  found = []
  for i in range(count):
    prompt, chosen, rejected = (
      rng.integers(1, 9, rng.integers(1, most)).tolist()
      for most in (60, 30, 30)
    )
    found.append(
      EncodedPreference(prompt + chosen, prompt + rejected, len(prompt), i)
    )
  return found


def lengths(items):
  return [item.length for item in items]


def train(items, shards=(0,), shard_count=1, members=None):
  pack = packed_loader.train_packer(
    LAYOUT,
    items,
    lengths(items),
    32,
    BUCKETS,
    2 * shard_count,
    shards,
    shard_count,
    members,
  )
  return loader.train_batches(
    items, lengths(items), 32, BUCKETS, pack, 0, shards, shard_count, whole=True
  )


def test_a_batch_has_the_items_of_the_loader():
  """The same as in padded batches, whose rows are the numbers of the items."""
  items = pairs()
  numbers = loader.train_batches(
    range(200),
    lengths(items),
    32,
    BUCKETS,
    lambda rows, length, batch_size: sorted(rows),
    0,
  )
  found = train(items)
  for _ in range(8):
    batch = next(found)
    assert sorted(batch.index[batch.valid]) == next(numbers)
    assert len(batch.index) % 2 == 0


def test_what_is_padding():
  """At most a tenth, over batches of 32 pairs of all lengths."""
  found, used, computed = train(pairs()), 0, 0
  for _ in range(30):
    batch = next(found)
    used += batch.num_tokens
    computed += batch.tokens.size
  assert 1 - used / computed < 0.1


def test_processes_have_parts_of_one_batch():
  items = pairs()
  whole = train(items, (0, 1), 2)
  parts = [train(items, (k,), 2) for k in range(2)]
  for _ in range(4):
    expected = next(whole)
    for arrays in zip(expected, *map(next, parts), strict=True):
      np.testing.assert_array_equal(arrays[0], np.concatenate(arrays[1:]))


def test_each_member_has_its_own_items():
  items = pairs()
  subsets = Subsets(200, members=3, share=0.5, seed=0)
  found, plain = train(items, members=subsets), train(items)
  for _ in range(4):
    batch, all_ = next(found), next(plain)
    assert batch.tokens.shape[1] == batch.valid.shape[1] == 3
    whole = set(all_.index[all_.valid])
    own = [batch.index[:, k][batch.valid[:, k]].tolist() for k in range(3)]
    assert [len(set(mine)) for mine in own] == [16] * 3
    assert all(set(mine) < whole for mine in own)
    index = np.array(sorted(whole))
    for mine, places in zip(own, subsets(index), strict=True):
      assert sorted(mine) == index[places].tolist()
    assert len(set(map(tuple, map(sorted, own)))) == 3


@pytest.mark.parametrize("longer", [0, 1])
def test_members_have_rows_as_wide_as_the_widest(longer):
  def pair(index):
    size = 40 if index // 2 == longer else 2
    return EncodedPreference([1] * (1 + size), [1, 2], 1, index)

  def halves(index):
    return np.array([[0, 1], [2, 3]])

  layout = Layout(responses=2, targets=True)
  pack = packed_loader.TrainPacker(layout, rows={0: 1}, members=halves)
  items = [pair(i) for i in range(4)]
  batch = pack(items, 0, 4)
  for k in range(2):
    alone = layout.pack(items[2 * k :][:2], [[0, 1]], 2)
    used = alone.segments.shape[1]
    assert batch.segments.shape[2] >= used
    np.testing.assert_array_equal(batch.segments[:, k, :used], alone.segments)
    count = alone.counts.sum()
    np.testing.assert_array_equal(
      batch.targets[0, k, :count], alone.targets[0, :count]
    )


@pytest.mark.parametrize("count", [1, 5, 64, 200])
def test_a_pass_has_every_item_once(count):
  items = pairs(count)
  passes = packed_loader.EvalBatches(LAYOUT, items, lengths(items), 16, BUCKETS)
  for _ in range(2):
    batches = list(passes())
    assert len(batches) == len(passes)
    found = [i for batch in batches for i in batch.index[batch.valid]]
    assert sorted(found) == list(range(count))
    assert len({batch.tokens.shape for batch in batches}) <= len(BUCKETS)


def test_a_pass_is_little_padding():
  items = pairs()
  batches = list(
    packed_loader.EvalBatches(LAYOUT, items, lengths(items), 16, BUCKETS)()
  )
  used = sum(batch.num_tokens for batch in batches)
  assert 1 - used / sum(batch.tokens.size for batch in batches) < 0.1


def test_a_pass_over_processes():
  items = pairs(70)
  whole, *parts = (
    packed_loader.EvalBatches(
      LAYOUT, items, lengths(items), 16, BUCKETS, shards, 2
    )
    for shards in ((0, 1), (0,), (1,))
  )
  for expected, *found in zip(whole(), *(p() for p in parts), strict=True):
    for arrays in zip(expected, *found, strict=True):
      np.testing.assert_array_equal(arrays[0], np.concatenate(arrays[1:]))


def test_a_row_that_is_too_long_is_named():
  items = pairs(4)
  with pytest.raises(ValueError, match="fits in none of the buckets"):
    packed_loader.EvalBatches(LAYOUT, items, lengths(items), 2, (8,))
