"""Rows that cannot be used, among others that can.

One such row does not end a run. All are counted by reason, the first of each
reason are shown, and the run is refused where they are most of the data.
"""

from collections.abc import Iterable

# How many rows of a reason are shown.
SHOWN = 3


class UnusableError(ValueError):
  """A row cannot be used; names its line and field.

  Attributes:
    reason: What is wrong, in the same words for all such rows.
  """

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


class NoRowsError(ValueError):
  """A file has no row that can be used, as one that describes others.

  Attributes:
    rows: Number of rows in it.
    unusable: What is wrong with them.
  """

  def __init__(
    self, message: str, rows: int = 0, unusable: "Unusable | None" = None
  ):
    super().__init__(message)
    self.rows = rows
    self.unusable = unusable or Unusable()

  def note(self, file: object) -> str:
    """Returns that the file is left out among others, for the log."""
    if not self.rows:
      return f"left out a file without rows: {self}"
    return (
      f"left out a file without rows: {file}: none of {_rows(self.rows)} can be"
      " used."
    )


class Unusable:
  """Counts rows that cannot be used, by reason.

  Attributes:
    counts: Number of rows, by reason.
  """

  def __init__(self) -> None:
    self.counts: dict[str, int] = {}
    self._first: dict[str, list[str]] = {}

  def __len__(self) -> int:
    return sum(self.counts.values())

  def add(self, message: str, reason: str) -> None:
    """Counts one row.

    Args:
      message: What is wrong with it, with its file and line.
      reason: Why the row is left out, see `UnusableError`.
    """
    self.counts[reason] = self.counts.get(reason, 0) + 1
    first = self._first.setdefault(reason, [])
    if len(first) < SHOWN:
      first.append(message)

  def merge(self, other: "Unusable") -> None:
    """Adds the rows of another count."""
    for reason, count in other.counts.items():
      self.counts[reason] = self.counts.get(reason, 0) + count
      first = self._first.setdefault(reason, [])
      first += other._first[reason][: SHOWN - len(first)]

  def notes(self) -> list[str]:
    """Returns a text for each reason: the count and the first rows."""
    most_first = sorted(self.counts, key=lambda r: -self.counts[r])
    return [
      f"left out {_rows(self.counts[reason])}, {reason}: {self._shown(reason)}"
      for reason in most_first
    ]

  def check(self, total: int, what: str) -> None:
    """Refuses data of which most rows cannot be used.

    Args:
      total: Number of all rows.
      what: What the rows are, for the error.

    Raises:
      ValueError: More than half of the rows cannot be used.
    """
    if 2 * len(self) > total:
      raise ValueError(
        f"{len(self)} of {total} {what} cannot be used, which is most of them."
        + "".join(f"\n  {note}" for note in self.notes())
      )

  def _shown(self, reason: str) -> str:
    first = self._first[reason]
    more = self.counts[reason] - len(first)
    return " | ".join(first) + (f" | and {more} more" if more else "")


def _rows(count: int) -> str:
  return f"{count} row" + "s" * (count != 1)


def shares(keys: Iterable[tuple[str, int]], total: int) -> str:
  """Returns names with their share of all rows, the most frequent first."""
  most_first = sorted(keys, key=lambda found: (-found[1], found[0]))
  return ", ".join(
    f"{name} ({100 * count / max(total, 1):.3g} % of rows)"
    for name, count in most_first
  )
