"""Checks that what a reward function returned is a number for each response."""

import decimal
import fractions
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

# Squares of rewards, as in a deviation, have to be finite in float32 too.
LARGEST = 1e18
# Numbers by their kind, and those that JAX adds to NumPy's.
_KINDS, _ADDED = "biuf", ("bfloat16", "float8")


def checked(
  found: Any, responses: Sequence[str], row_ids: Sequence[str], signature: str
) -> np.ndarray:
  """The numbers that a function returned, `[n]` float32.

  Args:
    found: The value that the function returned.
    responses: The responses that the function was given.
    row_ids: Ids of the rows of the responses.
    signature: How the function is called, for messages.

  Raises:
    ValueError: It is no list of `n` numbers, or one of them is not finite or
      too large in float32: says which, and for which row. The message goes on
      from the name of the function.
  """
  count = len(responses)
  wanted = (
    f"It must return a list of {count} numbers, in their order: {signature}."
  )
  given = f"was given {count} responses and returned {type(found).__name__}"

  def of(place: int) -> str:
    return f"for the response {shown(responses[place])} to row {row_ids[place]}"

  try:
    array = np.asarray(found)
  except Exception as error:
    raise ValueError(
      f"{given} that is no list of numbers ({error}). {wanted}"
    ) from error
  if array.shape != (count,):
    shape = f" of shape {array.shape}"
    raise ValueError(f"{given}{shape}. {wanted}")
  if not _is_numeric(array.dtype):
    for place, item in enumerate(found):
      if not _is_number(item):
        raise ValueError(
          f"{given} with {item!r}, a {type(item).__name__} and no number,"
          f" {of(place)}. {wanted}"
        )
    array = np.array([_as_float(item) for item in found])
  exact = array.astype(np.float64)
  with np.errstate(over="ignore"):
    values = exact.astype(np.float32)
  bad = np.flatnonzero(~np.isfinite(values))
  if bad.size:
    first = int(bad[0])
    finite = np.isfinite(exact[first])
    why = f", which is {values[first]} in float32," if finite else ""
    raise ValueError(
      f"returned {exact[first]}{why} {of(first)}. Rewards must be finite:"
      " return a low number for a response that cannot be scored."
    )
  large = np.flatnonzero(np.abs(values) > LARGEST)
  if large.size:
    first = int(large[0])
    raise ValueError(
      f"returned {exact[first]} {of(first)}. Rewards beyond {LARGEST:.0e} have"
      " no finite square in float32: scale them down."
    )
  return values


def shown(text: str, most: int = 200) -> str:
  """A text in quotes, shortened."""
  return repr(text if len(text) <= most else f"{text[:most]}...")


def _is_numeric(dtype: np.dtype) -> bool:
  return dtype.kind in _KINDS or dtype.name.startswith(_ADDED)


def _is_number(item: Any) -> bool:
  """Whether it is a number: not a text that looks like one, and not None."""
  if isinstance(item, numbers.Real | decimal.Decimal | fractions.Fraction):
    return True
  try:
    array = np.asarray(item)
  except Exception:
    return False
  return array.shape == () and _is_numeric(array.dtype)


def _as_float(item: Any) -> float:
  try:
    return float(item)
  except OverflowError:  # an integer of more than 308 digits
    return float("inf") if item > 0 else float("-inf")
