"""Files of NumPy's arrays, as tests read them."""

import os

import numpy as np


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Every array of an .npz file by its name; the file is closed again."""
  with np.load(path) as found:
    return dict(found)
