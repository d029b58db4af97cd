"""A local copy of one part of a data set."""

import pytest

from tests.data.sources.upstream import cases


@pytest.fixture
def copy(tmp_path):
  cases.write_part(tmp_path / "data", "taskmaster_coffee", "reward")
  return tmp_path / "data"
