"""What the runs of several processes start from and are compared with."""

import pytest

from perl_jax import tasks
from tests.hosts import group as group_lib
from tests.tasks import tiny


@pytest.fixture(scope="session")
def cache(cache_settings):
  """Environment in which processes keep what they have compiled."""
  return {name.upper(): str(value) for name, value in cache_settings.items()}


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory):
  """A trained start, by this process on two of its devices."""
  workdir = tmp_path_factory.mktemp("start") / "sft"
  tasks.run(tiny.config("sft", mesh__data=2, eval__rows=0), workdir)
  return workdir


@pytest.fixture
def run_together(tmp_path, cache):
  """Returns `run(task, count, **overrides) -> workdir` of a finished run."""

  def run(task, count, environment=None, /, **overrides):
    workdir = tmp_path / f"{task}_by_{count}"
    with group_lib.Group(
      group_lib.arguments(task, workdir, **overrides),
      count=count,
      directory=tmp_path / f"logs_of_{task}_by_{count}",
      environment=cache | (environment or {}),
    ) as group:
      statuses = group.wait()
    assert statuses == [0] * count, "\n----\n".join(group.logs)
    return workdir

  return run
