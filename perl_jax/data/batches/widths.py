"""Makes batches of one kind as wide as the widest of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perl_jax.data.batches.prompts import PromptBatch


def as_wide(
  batches: Sequence[Any], among: Sequence[Any] | None = None
) -> list[Any]:
  """The batches, each padded to the largest shape of every array.

  What is added is padding as the batch has it already: rows, places and tokens
  that no mask keeps. One that is as wide as the widest comes back as it is.

  Args:
    batches: Batches of one kind, named tuples of arrays on the host.
    among: Those whose shapes count; None takes `batches`.
  """
  among = batches if among is None else among
  shapes = [
    tuple(map(max, zip(*sizes, strict=True)))
    for sizes in zip(*([x.shape for x in b] for b in among), strict=True)
  ]
  return [
    type(batch)(
      *(
        _padded(name, array, shape, left=isinstance(batch, PromptBatch))
        for name, array, shape in zip(batch._fields, batch, shapes, strict=True)
      )
    )
    for batch in batches
  ]


def _padded(
  name: str, array: np.ndarray, shape: tuple[int, ...], left: bool
) -> np.ndarray:
  """An array with padding up to a shape, behind it, or before its columns."""
  if array.shape == shape:
    return array
  fill = -1 if name == "index" else 0
  found = np.full(shape, fill, array.dtype)
  # Rows are added below; only the columns of prompts end on the right.
  place = [slice(0, size) for size in array.shape]
  if left and array.ndim > 1:
    place[1] = slice(shape[1] - array.shape[1], shape[1])
  found[tuple(place)] = array
  return found
