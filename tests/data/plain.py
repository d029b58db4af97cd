"""Encoded rows with lists in place of arrays, which `==` compares whole."""

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
  """The value with a list for each array in its lists and tuples."""
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, list):
    return [plain(item) for item in value]
  if isinstance(value, tuple):
    made = getattr(type(value), "_make", type(value))
    return made(plain(item) for item in value)
  return value
