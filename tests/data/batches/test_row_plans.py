"""Which items share a row: all of them once, and little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perl_jax.data.batches import row_plans

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(lengths, st.integers(1, 8))
def test_balanced_rows_have_every_item_once(sizes, rows):
  plan = row_plans.balanced(sizes, rows)
  assert sorted(i for row in plan for i in row) == list(range(len(sizes)))
  assert len(plan) == rows
  room = row_plans.most_in_a_row(len(sizes), rows)
  assert max(map(len, plan)) <= room


def test_balanced_rows_are_nearly_equal():
  """Graham's bound: 4/3 of the best, which is at least the mean."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    sizes = rng.integers(50, 400, 32).tolist()
    loads = [sum(sizes[i] for i in row) for row in row_plans.balanced(sizes, 8)]
    assert max(loads) <= 4 / 3 * max(sum(sizes) / 8, max(sizes))
    assert max(loads) < 1.15 * sum(sizes) / 8


@given(lengths, st.integers(1, 5))
def test_best_fit_never_overfills(sizes, most):
  rows = row_plans.best_fit(sizes, 300, most)
  assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
  assert all(sum(sizes[i] for i in row) <= 300 for row in rows)
  assert all(0 < len(row) <= most for row in rows)


def test_best_fit_by_hand():
  """The longest first, each into the row with the least room that has some."""
  assert row_plans.best_fit([3, 7, 6, 4], 10) == [[1, 0], [2, 3]]
  assert row_plans.best_fit([2, 2, 2, 2], 10, most=3) == [[0, 1, 2], [3]]


@given(st.integers(1, 5000), st.sampled_from([1, 8, 128]))
def test_lengths_are_rounded_up_to_few(length, block):
  found = row_plans.rounded(length, block)
  assert length <= found < length + max(length / 16 + 1, block)
  assert found % block == 0


@given(st.integers(1, 5000))
def test_blocks_need_not_be_powers_of_two(length):
  found = row_plans.rounded(length, 48)
  assert length <= found < length + length / 16 + 48 and found % 48 == 0


def test_blocks_are_of_eight_tokens():
  assert {row_plans.rounded(n) for n in range(1, 65)} == set(range(8, 72, 8))


def test_sixteen_lengths_between_powers_of_two():
  assert len({row_plans.rounded(n) for n in range(257, 513)}) == 16


@pytest.mark.parametrize(
  "items, length, multiple, rows",
  [
    (32, 200, 4, 16),  # two in a row
    (48, 200, 16, 16),  # or three, where the parts of a batch leave no other
    (32, 700, 1, 32),  # not above some 1,024 columns
    (32, 3000, 1, 32),  # long items are in a row alone
    (8, 50, 8, 8),
    (5, 50, 2, 2),  # no number of rows is even
  ],
)
def test_fewest_rows(items, length, multiple, rows):
  assert row_plans.fewest_rows(items, length, multiple) == rows
  assert row_plans.row_count([length] * 3, items, multiple) >= rows


@pytest.mark.parametrize(
  "lengths, items, block, rows",
  [
    ([384], 8, 8, 8),  # rows of 768 would have no less padding
    ([300], 8, 128, 4),  # two fill 5 blocks, one alone would take 3
    ([100] * 9 + [500], 32, 8, 9),  # a long one has five others beside it
    ([], 8, 8, 4),
  ],
)
def test_number_of_rows(lengths, items, block, rows):
  """Rows times length times (1 + length / 1024), by hand.

  8 x 384 x 1.375 = 4224 < 4 x 768 x 1.75 = 5376;
  4 x 640 x 1.625 = 4160 < 8 x 384 x 1.375;
  9 x 512 x 1.5 = 6912 < 16 x 512 x 1.5, but eight would be of 608.
  """
  assert row_plans.row_count(lengths, items, 1, block) == rows


@pytest.mark.parametrize(
  "lowest, highest, items, multiple, expected",
  [
    # The longest of so many is longer than two others.
    (20, 500, 32, 4, 12),
    (20, 500, 128, 16, 48),
    (340, 384, 32, 4, 32),  # alike: each in a row of its own
    (290, 384, 32, 4, 16),  # which would be cheaper here too, but a tenth empty
  ],
)
def test_rows_are_as_many_as_are_cheapest(
  lowest, highest, items, multiple, expected
):
  """Beside a loop over many other batches of such lengths."""
  draws = np.random.default_rng(1)
  lengths = lowest + (highest - lowest) * draws.beta(1.0, 2.0, size=2000)
  lengths = lengths.astype(int)
  found = row_plans.row_count(lengths.tolist(), items, multiple)

  def computed(rows):
    total = used = columns = 0
    for _ in range(100):
      ends = np.zeros(rows, int)
      for size in sorted(draws.choice(lengths, items), reverse=True):
        ends[ends.argmin()] += size
      length = row_plans.rounded(int(ends.max()))
      total += rows * length * (1 + length / 1024)
      used += ends.sum()
      columns += rows * length
    return max(1 - used / columns - 0.1, 0), total

  counts = range(items // 4, items + 1, multiple)
  costs = {rows: computed(rows) for rows in counts}
  most = 1.1 * min(cost for _, cost in costs.values())
  costs = {rows: both for rows, both in costs.items() if both[1] <= most}
  assert found == min(costs, key=costs.get) == expected
