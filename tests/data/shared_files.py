"""Released files of the public data sets, in `../shared/data` if present."""

import gzip
import json
import pathlib
from typing import Any

import pytest

_ROOT = pathlib.Path(__file__).parents[3] / "shared" / "data"


def find(name: str = "") -> pathlib.Path:
  """Returns the path of a file or folder; skips the test if it is not there."""
  path = _ROOT / name
  if not path.exists():
    pytest.skip(f"there is no ../shared/data/{name}")
  return path


def rows(folder: str) -> list[Any]:
  """Returns the rows of every JSON list in a folder, in the order of names."""
  found = []
  for path in sorted(find(folder).glob("*.json.gz")):
    with gzip.open(path, "rt", encoding="utf-8") as file:
      found += json.load(file)
  return found
