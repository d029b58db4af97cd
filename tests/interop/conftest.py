"""A reference checkpoint that a test may change."""

import shutil

import pytest

from tests.interop.tiny import REFERENCES


@pytest.fixture
def copy(tmp_path):
  """Copies the checkpoint of a family; returns the directory."""

  def make(family):
    source = REFERENCES / family / "checkpoint"
    return shutil.copytree(source, tmp_path / "hf")

  return make
