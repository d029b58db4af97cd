"""What two processes save: together, or the first for both."""

import pathlib

import pytest

from tests.hosts import group

pytestmark = pytest.mark.slow


def test_to_save_runs_no_program(tmp_path):
  """It would begin when the sampling ends that a stop has abandoned."""
  for programs, path in group.sides("saving_side", tmp_path / "run"):
    assert programs == []
    assert pathlib.Path(path).is_dir()


def test_the_first_saves_and_reads_for_both():
  """Every bit of it, in pieces, wherever the parts of an array lie."""
  first, second = group.sides("apart_side")
  assert first["mine"] == first["expected"] and second["mine"] is None
  for found in (first, second):
    assert len(found["again"]) == 4
    assert all(all(same) for same in found["again"])
