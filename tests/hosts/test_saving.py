"""A checkpoint of two processes waits for no device."""

import pathlib

import pytest

from tests.hosts import group

pytestmark = pytest.mark.slow


def test_to_save_runs_no_program(tmp_path):
  """It would begin when the sampling ends that a stop has abandoned."""
  for programs, path in group.sides("saving_side", tmp_path / "run"):
    assert programs == []
    assert pathlib.Path(path).is_dir()
