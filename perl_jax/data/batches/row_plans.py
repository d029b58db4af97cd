"""Which sequences share a row: packing by length, without any tokens.

All of it depends on the lengths alone, so that every process of a run comes to
the same plan.
"""

import bisect
import heapq
from collections.abc import Sequence

import numpy as np

# Rows hold this many items of one length, or fewer where they would be longer
# than about so many columns. More in a row would leave less padding, but
# attention costs more the longer a row is: with XLA on a CPU, rows of 1,000
# columns spend as much time in it as in all the rest.
_ITEMS, _COLUMNS = 2, 1024
# Items that a row holds on average where their lengths differ, at most.
_MOST = 4
# The number of rows is chosen on batches of so many items in all, at least two
# batches, among about so many numbers.
_DRAWN, _TRIED = 1024, 64
# Share of the columns that may be padding, and what less of it may cost more.
_PADDING, _DEARER = 0.1, 1.1
# Rows have a multiple of so many tokens, unless they are to have another.
BLOCK = 8


def fewest_rows(items: int, length: int, multiple: int) -> int:
  """Number of rows for so many items that differ in their length.

  Args:
    items: Number of items, a multiple of `multiple`.
    length: Tokens of an item, such as their mean.
    multiple: The number of rows is a multiple of this one.
  """
  in_a_row = min(max(_COLUMNS // max(length, 1), 1), _ITEMS)
  wanted = items / in_a_row
  return min(_even(items, multiple), key=lambda n: abs(n - wanted))


def row_count(
  lengths: Sequence[int], items: int, multiple: int, block: int = BLOCK
) -> int:
  """Number of rows for batches of so many items, at the least `cost`.

  Items of one length leave no padding in rows of their own, which are shorter;
  where one is longer than several others together, these share rows. Where a
  number of rows costs at most a tenth more than the cheapest, and leaves no
  more than a tenth of the columns empty, or less than the cheapest, it is taken
  instead. What batches cost and leave empty is a mean over some that are drawn
  from all items.

  Args:
    lengths: Tokens of all items, of which a batch has some.
    items: Number of items in a batch, a multiple of `multiple`.
    multiple: The number of rows is a multiple of this one.
    block: See `rounded`.
  """
  if not lengths:
    return fewest_rows(items, 0, multiple)
  # The same on all processes.
  batches = max(_DRAWN // items, 2)
  drawn = np.random.default_rng(0).choice(lengths, size=(batches, items))

  def worth(rows: int) -> tuple[float, float]:
    """(share of padding above the limit, cost)."""
    total, columns = 0.0, 0
    for batch in drawn.tolist():
      plan = balanced(batch, rows)
      longest = max(sum(batch[i] for i in row) for row in plan)
      length = rounded(longest, block)
      total += cost(rows, length)
      columns += rows * length
    return max(1 - drawn.sum() / columns - _PADDING, 0.0), total

  step = multiple * max(items // (multiple * _TRIED), 1)
  counts = range(step, max(items, step) + 1, step)
  found = {n: worth(n) for n in counts if n * _MOST >= items}
  limit = _DEARER * min(total for _, total in found.values())
  return min((n for n in found if found[n][1] <= limit), key=found.get)


def _even(items: int, multiple: int) -> list[int]:
  """Numbers of rows that hold the same number of items each."""
  even = [n for n in range(multiple, items + 1, multiple) if items % n == 0]
  return even or [multiple]


def cost(rows: int, length: int) -> float:
  """What so many rows cost, in columns of short rows: N L (1 + L / 1024)."""
  return rows * length * (1 + length / _COLUMNS)


def most_in_a_row(items: int, rows: int) -> int:
  """Room for items in each row: twice as many as there are on average."""
  return 2 * -(-items // rows)


def rounded(length: int, block: int = BLOCK) -> int:
  """The next of few lengths: multiples of `block`, or a sixteenth above.

  There are at most sixteen between a power of two and the next, so that few
  programs are compiled.
  """
  sixteenth = max(length - 1, 1).bit_length() - 5
  step = -(-(2 ** max(sixteenth, 0)) // block) * block
  return -(-length // step) * step


def balanced(lengths: Sequence[int], rows: int) -> list[list[int]]:
  """Puts all items into so many rows, whose lengths are nearly equal.

  The longest item goes first, each into the row that is shortest so far
  (Graham 1969, Bounds on multiprocessing timing anomalies).

  Args:
    lengths: Tokens of each item.
    rows: Number of rows.

  Returns:
    The numbers of the items of each row; at most `most_in_a_row` of them.
  """
  found: list[list[int]] = [[] for _ in range(rows)]
  room = most_in_a_row(len(lengths), rows)
  shortest = [(0, row) for row in range(rows)]
  for item in _longest_first(lengths):
    length, row = heapq.heappop(shortest)
    found[row].append(item)
    if len(found[row]) < room:
      heapq.heappush(shortest, (length + lengths[item], row))
  return found


def best_fit(
  lengths: Sequence[int], columns: int, most: int | None = None
) -> list[list[int]]:
  """Puts items into rows of so many columns (best fit decreasing).

  Args:
    lengths: Tokens of each item, at most `columns`.
    columns: Tokens that a row has room for.
    most: Most items of a row; None sets no limit.

  Returns:
    The numbers of the items of each row.
  """
  rows: list[list[int]] = []
  open_rows: list[tuple[int, int]] = []  # (tokens left, row), ascending
  for item in _longest_first(lengths):
    size = lengths[item]
    place = bisect.bisect_left(open_rows, (size, -1))
    if place == len(open_rows):
      rows.append([item])
      left, row = columns - size, len(rows) - 1
    else:
      left, row = open_rows.pop(place)
      rows[row].append(item)
      left -= size
    if most is None or len(rows[row]) < most:
      bisect.insort(open_rows, (left, row))
  return rows


def _longest_first(lengths: Sequence[int]) -> list[int]:
  return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
