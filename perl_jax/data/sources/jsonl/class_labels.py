"""Columns of numbers that stand for names, as `ClassLabel` of `datasets` does.

The names are beside the table, in what `datasets` writes about its columns. A
column with the names "no" and "yes" has 1 for yes, and one with "yes" and "no"
has 0 for it; one with "1" to "5" has 4 for a score of 5. Where the names are
words or numbers that rows are read by, they are the values.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import logging

from perl_jax.data.sources.jsonl import rated, verdicts

_KEY = b"huggingface"


class Labels:
  """The columns of a table whose numbers are to be read as their names."""

  def __init__(self, schema: Any, name: str) -> None:
    """Reads the names of a table's columns.

    Args:
      schema: The `pyarrow.Schema` with what `datasets` wrote about it, if it
        did.
      name: What the table is called in the log, which has the names of columns
        that are left as they are.
    """
    self._values: dict[str, list[Any]] = {}
    for column, names in _names(schema.metadata).items():
      if not _has_numbers(schema, column):
        continue
      values = _values(names)
      if values is not None:
        self._values[column] = values
        continue
      shown = ", ".join(f"{i} is {n!r}" for i, n in enumerate(names[:5]))
      more = ", ..." if len(names) > 5 else ""
      message = f"{name}: of the numbers in {column!r}, {shown}{more}."
      if len(names) == 2:
        logging.warning(
          "%s They are read as numbers: as a label, 1 says that a response is"
          " good.",
          message,
        )
      else:
        logging.info("%s They are read as numbers.", message)

  def named(self, column: str, values: list[Any]) -> list[Any]:
    """The values of a column, by their names; those without one are null."""
    named = self._values.get(column)
    if named is None:
      return values
    return [
      named[value] if value is not None and 0 <= value < len(named) else None
      for value in values
    ]


def _has_numbers(schema: Any, column: str) -> bool:
  """Whether there is such a column of numbers: what is beside a table lasts."""
  import pyarrow

  place = schema.get_field_index(column)
  return place >= 0 and pyarrow.types.is_integer(schema.field(place).type)


def _names(metadata: Any) -> dict[str, list[str]]:
  """Returns the names of each column that has some."""
  try:
    features = json.loads((metadata or {})[_KEY])["info"]["features"]
    found = {
      column: feature["names"]
      for column, feature in features.items()
      if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
  except (KeyError, TypeError, AttributeError, ValueError):
    return {}
  return {
    column: names
    for column, names in found.items()
    if isinstance(names, list) and all(isinstance(n, str) for n in names)
  }


def _values(names: Sequence[str]) -> list[Any] | None:
  """Returns what names are read as; None if nothing is known of them."""
  numbers = [rated.number(name) for name in names]
  if all(number is not None for number in numbers):
    return [int(n) if n.is_integer() else n for n in numbers]
  if [rated.label_of(name) for name in names] == [0, 1]:
    return [0, 1]  # The names say what the numbers do.
  known = [
    rated.number(name) is not None
    or rated.label_of(name) is not None
    or verdicts.side_of(name) is not None
    for name in names
  ]
  return list(names) if any(known) else None
