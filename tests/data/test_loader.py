"""Epochs, buckets, resumption and sharding of the loader."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl_jax.data import loader

BUCKETS = (16, 32, 64)


def _collate(rows, length, batch_size):
  assert len(rows) <= batch_size
  return length, list(rows)


def _train(lengths, batch_size, seed=0, **kwargs):
  rows = list(range(len(lengths)))
  return loader.train_batches(
    rows, lengths, batch_size, BUCKETS, _collate, seed, **kwargs
  )


@st.composite
def cases(draw):
  lengths = draw(st.lists(st.integers(1, 64), min_size=1, max_size=40))
  return lengths, draw(st.integers(1, len(lengths)))


LENGTHS = np.random.default_rng(0).integers(1, 65, 107).tolist()


@settings(max_examples=12, deadline=None)
@given(cases(), st.integers(0, 2**31))
def test_an_epoch_has_every_row_once_but_for_a_remainder(case, seed):
  lengths, batch_size = case
  batches = _train(lengths, batch_size, seed)
  assert batches.batches_per_epoch == len(lengths) // batch_size
  for _ in range(2):
    epoch = [next(batches) for _ in range(batches.batches_per_epoch)]
    rows = [row for _, batch in epoch for row in batch]
    assert (
      len(rows) == len(set(rows)) == len(lengths) // batch_size * batch_size
    )
    for bucket, batch in epoch:
      assert len(batch) == batch_size
      assert all(lengths[row] <= bucket for row in batch)


def test_few_rows_are_in_a_longer_bucket_than_they_need():
  batches = _train(LENGTHS, 8)
  longer = 0
  for _ in range(batches.batches_per_epoch):
    bucket, rows = next(batches)
    smallest = [min(b for b in BUCKETS if b >= LENGTHS[row]) for row in rows]
    longer += sum(size < bucket for size in smallest)
  assert longer < 2 * 8


def test_epochs_and_seeds_have_different_orders():
  def epochs(seed):
    batches = _train(LENGTHS, 8, seed)
    return [
      tuple(
        (bucket, tuple(rows))
        for bucket, rows in (
          next(batches) for _ in range(batches.batches_per_epoch)
        )
      )
      for _ in range(2)
    ]

  # Neighbouring seeds too: Grain adds the epoch to the seed.
  orders = [order for seed in (0, 1) for order in epochs(seed)]
  assert len(set(orders)) == 4
  assert epochs(1) == orders[2:]
  # Not only the batches are in another order: their rows differ as well.
  rows = [{frozenset(rows) for _, rows in order} for order in orders]
  assert len(rows[0] & rows[1]) < 3
  sequences = [tuple(bucket for bucket, _ in order) for order in orders]
  assert sequences[0] != sequences[1]
  # Members of several seeds have batches of one bucket at every step.
  assert sequences[2:] == sequences[:2]


def test_every_row_is_seen_in_the_end():
  batches = _train([10] * 7, 4)
  seen = collections.Counter(row for _ in range(12) for row in next(batches)[1])
  assert set(seen) == set(range(7))


@pytest.mark.parametrize("taken", [0, 5, 13])
def test_resuming_continues_the_sequence(taken):
  batches = _train(LENGTHS, 8, seed=3)
  for _ in range(taken):
    next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  expected = [next(batches) for _ in range(10)]

  resumed = _train(LENGTHS, 8, seed=3)
  next(resumed)  # Wherever it was before.
  resumed.set_state(state)
  assert resumed.get_state() == state
  assert [next(resumed) for _ in range(10)] == expected


def test_a_run_of_an_older_version_goes_on_in_its_order():
  """What it wrote after five batches, and what followed in it."""
  state = {
    "rows": 107, "tokens": 3539, "batch_size": 8, "batches_per_epoch": 13,
    "seed": 3, "next_index": 5,
  }  # fmt: skip
  batches = _train(LENGTHS, 8, seed=3)
  batches.set_state(state)
  followed = [
    (bucket, rows[0]) for bucket, rows in itertools.islice(batches, 6)
  ]
  state = json.loads(json.dumps(batches.get_state()))
  again = _train(LENGTHS, 8, seed=3)
  again.set_state(state)
  followed += [(bucket, rows[0]) for bucket, rows in itertools.islice(again, 4)]
  assert followed == [
    (64, 55), (32, 79), (64, 26), (32, 89), (64, 47), (32, 100), (32, 40),
    (64, 29), (16, 32), (32, 103),
  ]  # fmt: skip
  bucket, rows = again.at(5)
  assert (bucket, rows[0]) == (64, 55)  # as members that are ahead are asked
  bucket, rows = again.again().at(5)
  assert (bucket, rows[0]) != (64, 55)


def test_an_order_of_a_later_version_is_refused():
  batches = _train(LENGTHS, 8)
  with pytest.raises(ValueError, match=r"order of batches \(3\).*version"):
    batches.set_state(batches.get_state() | {"order": 3})


def test_resuming_does_not_replay():
  calls = 0

  def collate(rows, length, batch_size):
    nonlocal calls
    calls += 1
    return rows

  batches = loader.train_batches(LENGTHS, LENGTHS, 8, BUCKETS, collate, seed=0)
  batches.set_state({**batches.get_state(), "next_index": 10**9})
  next(batches)
  assert calls == 1


def test_resuming_with_other_data_is_refused():
  state = _train(LENGTHS, 8, seed=3).get_state()
  for other in (
    _train(LENGTHS[:-1], 8, seed=3),
    _train(LENGTHS, 4, seed=3),
    _train(LENGTHS, 8, seed=4),
  ):
    with pytest.raises(ValueError, match="position to resume from"):
      other.set_state(state)
  with pytest.raises(ValueError, match="position to resume from"):
    _train(LENGTHS, 8).set_state({})


def test_processes_share_the_global_batch():
  whole = _train(LENGTHS, 8)
  parts = [_train(LENGTHS, 8, shards=(i,), shard_count=2) for i in range(2)]
  for _ in range(15):
    bucket, rows = next(whole)
    mine = [next(part) for part in parts]
    assert {part_bucket for part_bucket, _ in mine} == {bucket}
    assert [row for _, part in mine for row in part] == rows


def test_a_full_largest_bucket_is_made_when_it_has_too_few_rows():
  # Three long rows cannot fill a batch; dropped, they would never be seen.
  batches = _train([10] * 12 + [60] * 3, 4)
  epoch = [next(batches) for _ in range(batches.batches_per_epoch)]
  assert sorted(bucket for bucket, _ in epoch) == [16, 16, 64]


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match=r"3 training rows.*batch_size=4.*data"):
    _train([1, 2, 3], 4)
  with pytest.raises(ValueError, match="0 training rows"):
    _train([], 4)
  with pytest.raises(ValueError, match="65 tokens fits in none"):
    _train([1, 65], 1)
  with pytest.raises(ValueError, match=r"batch_size=8 .* 3 parts"):
    _train(LENGTHS, 8, shard_count=3)
  with pytest.raises(ValueError, match=r"shards=\(2,\)"):
    _train(LENGTHS, 8, shards=(2,), shard_count=2)
  with pytest.raises(ValueError, match="batch_size=0"):
    _train(LENGTHS, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=40), st.sampled_from([2, 4, 6]))
def test_evaluation_has_every_row_once_from_short_to_long(lengths, batch_size):
  rows = list(range(len(lengths)))
  batches = list(
    loader.eval_batches(rows, lengths, batch_size, BUCKETS, _collate)
  )
  order = [row for _, batch in batches for row in batch]
  assert sorted(order) == rows
  assert [lengths[row] for row in order] == sorted(lengths)
  assert len(batches) == -(-len(rows) // batch_size)
  for bucket, batch in batches:
    longest = max(lengths[row] for row in batch)
    assert bucket == min(b for b in BUCKETS if b >= longest)

  halves = [
    list(
      loader.eval_batches(rows, lengths, batch_size, BUCKETS, _collate, (i,), 2)
    )
    for i in range(2)
  ]
  assert [
    (bucket, first + second)
    for (bucket, first), (_, second) in zip(*halves, strict=True)
  ] == batches


def test_evaluation_refuses_a_long_row_before_it_starts():
  with pytest.raises(ValueError, match="65 tokens"):
    loader.eval_batches([0], [65], 2, BUCKETS, _collate)
