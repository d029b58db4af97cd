"""The TPU's compiler on machines without a TPU."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import jax

_FLAGS, _CPU = "XLA_FLAGS", "--xla_cpu_"


def quiet(environment: MutableMapping[str, str]) -> None:
  """Tells libtpu that there is no TPU, and no TPU VM to ask for its metadata.

  The query fails with a long warning. JAX sets TPU_SKIP_MDS_QUERY when it is
  imported and finds no chip; on a TPU nothing is changed. To be called before
  JAX creates its first device.

  Args:
    environment: Environment variables. Those that a TPU VM would set are added
      unless they are there.
  """
  if environment.get("TPU_SKIP_MDS_QUERY") == "1":
    # There is no chip that two processes could want, which a file would lock.
    environment.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    environment.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    environment.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def leave_out(environment: Mapping[str, str]) -> None:
  """Keeps JAX from loading libtpu where there is nothing but a CPU.

  Once it is loaded and finds no chip, JAX's profiler ends the process (jax
  0.10.2, libtpu 0.0.52: SIGSEGV in `PluginTracer::Start`). To be called before
  JAX creates its first device. Platforms that the user has chosen remain.

  Args:
    environment: Environment variables, as JAX has left them; see `quiet`.
  """
  no_chip = environment.get("TPU_SKIP_MDS_QUERY") == "1"
  if no_chip and not jax.config.jax_platforms and not _has_plugins():
    jax.config.update("jax_platforms", "cpu")


def _has_plugins() -> bool:
  """Whether a package for other devices, such as a GPU, is installed."""
  group = "jax_plugins"
  found = importlib.metadata.entry_points(group=group)
  return bool(found) or importlib.util.find_spec(group) is not None


def is_idle() -> bool:
  """Whether libtpu is loaded in this process, which has no TPU."""
  maps = Path("/proc/self/maps")  # there is no libtpu but for Linux
  loaded = maps.exists() and "libtpu" in maps.read_text()
  return loaded and jax.default_backend() != "tpu"


def hide_cpu_flags(environment: MutableMapping[str, str]) -> None:
  """Takes XLA's flags for CPUs away, before libtpu compiles for the first time.

  Its own XLA knows only some of them, and ends the process at the first flag
  that it does not know. None of them is for a TPU.

  Args:
    environment: Environment variables.
  """
  given = environment.get(_FLAGS, "")
  if _CPU in given:
    kept = [flag for flag in given.split() if not flag.startswith(_CPU)]
    environment[_FLAGS] = " ".join(kept)
