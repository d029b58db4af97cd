"""Runs that several tests look at, made once, and a cache of compiled steps."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from perl_jax import tasks
from tests.tasks import tiny


def pytest_collection_modifyitems(items):
  """Whoever looks at the pipeline's run may be the one who waits for it."""
  for item in items:
    if "finished" in getattr(item, "fixturenames", ()):
      item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory):
  """Keeps executables between runs: a resumed run compiles what it did before.

  It is the setting that a user would make, and only saves time.
  """
  values = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in values}
  for name, value in values.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


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
