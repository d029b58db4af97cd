"""Marks of single cases of a parametrised test."""

from typing import Any

import pytest


def by_night(*values: Any) -> Any:
  """A case that `make nightly` runs and CI does not."""
  return pytest.param(*values, marks=pytest.mark.nightly)
