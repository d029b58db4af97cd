"""What the value of a field in somebody else's file is."""

import re
from typing import Any

# A larger number is infinite in float32.
LARGEST = 3.4e38


def is_number(value: Any) -> bool:
  """Whether it is a number; true and false are none."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
  """Whether it is a number above 0 that float32 has."""
  return is_number(value) and 0 < value < LARGEST


def is_index(value: Any) -> bool:
  """Whether it is a whole number."""
  return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
  """Whether it is a whole number of at least 1."""
  return is_index(value) and value >= 1


def is_pattern(value: Any, groups: int | None = None) -> bool:
  """Whether it is a regular expression, of so many groups if that counts."""
  try:
    found = re.compile(value)
  except (re.error, TypeError, OverflowError, RecursionError):
    return False
  return groups is None or found.groups == groups


def is_names(value: Any) -> bool:
  """Whether it is a regular expression, or a list of names."""
  if isinstance(value, list):
    return all(isinstance(name, str) for name in value)
  return isinstance(value, str) and is_pattern(value)
