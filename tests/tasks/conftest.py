"""Runs that several tests look at, made once."""

import pytest

from perl_jax import sharding


@pytest.fixture(scope="module", autouse=True)
def cached(compiled_once):
  """Every run of these tests keeps what it has compiled."""


@pytest.fixture(scope="session")
def sft_run(finished):
  return finished / "sft"


@pytest.fixture(scope="session")
def reward_run(finished):
  return finished / "reward"


@pytest.fixture(scope="session")
def rl_run(finished):
  return finished / "rl"


@pytest.fixture
def placed_bases(monkeypatch):
  """Bases (trees with an embedding) that the test puts on the devices."""
  placed, place = [], sharding.place

  def spy(mesh, tree, **options):
    found = place(mesh, tree, **options)
    if isinstance(tree, dict) and "embedding" in tree:
      placed.append(found)
    return found

  monkeypatch.setattr(sharding, "place", spy)
  return placed
