"""Runs that go on compile what they did before."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def cached(compiled_once):
  """Every run of these tests keeps what it has compiled."""
