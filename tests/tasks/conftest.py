"""Runs that several tests look at, made once."""

import pytest

from perl_jax import sharding, tasks
from tests.tasks import tiny


def pytest_collection_modifyitems(items):
  """Whoever looks at the pipeline's run may be the one who waits for it."""
  for item in items:
    if "finished" in getattr(item, "fixturenames", ()):
      item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def cached(compiled_once):
  """Every run of these tests keeps what it has compiled."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """Workdir of a whole pipeline: sft (full), reward and rl (LoRA), evaluate.

  Tests read it and leave it as it is.
  """
  workdir = tmp_path_factory.mktemp("pipeline") / "run"
  tasks.run(tiny.pipeline(), workdir)
  return workdir


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
