"""Says which rows are there more than once, in one file or in several."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from perl_jax.data.records import Record

# What rows that say the same may differ in.
_OF_ITS_OWN = ("id", "group", "fields", "subset")


def among(path: str, rows: Sequence[Record]) -> tuple[int, list[str]]:
  """Returns how many rows repeat others, and what to say of it.

  Nothing is said if all are in the files of what they repeat: that may be meant
  to count them more.
  """
  found = list(_repeated(rows, rows))
  apart = [(row, first) for row, first in found if _file(row) != _file(first)]
  if not apart:
    return len(found), []
  row, first = apart[0]
  note = (
    f"{path}: {len(apart)} of {len(rows)} rows repeat one of another file, such"
    f" as {row.id}, which repeats {first.id}. Training counts both: is a file"
    " there twice?"
  )
  return len(found), [note]


def between(
  path: str, train: Sequence[Record], validation: Sequence[Record]
) -> list[str]:
  """Returns what to say of validation rows that are trained on; [] of none.

  Those of a file that the user has named for both are what was asked for.
  """
  found = [
    (row, first)
    for row, first in _repeated(train, validation)
    if _file(row) != _file(first)
  ]
  if not found:
    return []
  row, first = found[0]
  return [
    f"{path}: {len(found)} of {len(validation)} validation rows are training"
    f" rows as well, such as {row.id}, which is {first.id}. What is measured on"
    " them says little of rows that are new."
  ]


def _repeated(
  known: Sequence[Record], rows: Sequence[Record]
) -> Iterator[tuple[Record, Record]]:
  """Yields the rows that repeat one of `known`, and that.

  If both are the same sequence, those before a row are known.
  """
  itself = known is rows
  # Rows that say the same are in one group, and most groups have one row.
  groups = Counter(row.group for row in rows)
  if itself:
    groups = Counter({group: n for group, n in groups.items() if n > 1})
  first: dict[str, Record] = {}
  for row in known:
    if row.group in groups:
      other = first.setdefault(_said(row), row)
      if itself and other is not row:
        yield row, other
  for row in () if itself else rows:
    if _said(row) in first:
      yield row, first[_said(row)]


def _file(row: Record) -> str:
  return row.id.rpartition(":")[0]


def _said(row: Record) -> str:
  """Returns all that is learned of a row, as one text."""
  return repr(
    [
      getattr(row, field.name)
      for field in dataclasses.fields(row)
      if field.name not in _OF_ITS_OWN
    ]
  )
