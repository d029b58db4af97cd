"""A cache of compiled programs on disk, so that a second start compiles none.

JAX does the caching (`jax_compilation_cache_dir`); its keys cover the program,
the compiler's version and flags, and the kind of device. Decided here is where
the cache lies, how large it may grow, and that an entry which was cut off by a
kill is compiled again.
"""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import filelock
import jax
from absl import logging

from perl_jax import buckets

OFF = "off"
# Programs that compile in less time are not worth a file.
LEAST_SECONDS = 0.3
MOST_BYTES = 4 * 2**30
# Names of JAX's files: an entry, the time when it was used, and the lock.
_ENTRY, _USED, _LOCK = "-cache", "-atime", ".lockfile"


def use(directory: str, environment: Mapping[str, str]) -> Path | None:
  """Makes JAX keep compiled programs in a directory.

  Args:
    directory: The directory; "" is `perl_jax` in the user's cache folder
      ($XDG_CACHE_HOME, or ~/.cache); "off" is no cache.
    environment: Environment variables. JAX's own JAX_COMPILATION_CACHE_DIR wins
      over the default.

  Returns:
    The directory that is used, below the given one; None if there is no cache:
    it is switched off, configured for JAX already, or cannot be written.

  Raises:
    ValueError: A directory was given and cannot be written, or is an address.
  """
  if directory == OFF:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  if not directory and jax.config.jax_compilation_cache_dir:
    return None
  if buckets.is_url(directory):
    raise ValueError(
      f"--compilation_cache={directory} is an address, and a cache is a"
      " directory of this machine: give its path. JAX itself keeps programs in"
      " buckets: leave the flag out, and set JAX_COMPILATION_CACHE_DIR."
    )
  above = Path(directory or default_directory(environment)).expanduser()
  path = above.absolute() / machine()
  try:
    path.mkdir(parents=True, exist_ok=True)
    remove_broken(path)
  except OSError as error:
    if not directory:  # it only saves time
      logging.warning(
        "Compiled programs are not kept for later starts, which compile them"
        " again: %s cannot be written (%s). --compilation_cache=DIR moves them,"
        " and --compilation_cache=%s silences this.",
        path,
        error,
        OFF,
      )
      return None
    raise ValueError(
      f"--compilation_cache={directory}: {path} cannot be written ({error})."
      f" Give another directory, or --compilation_cache={OFF}."
    ) from error
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  return path


def default_directory(environment: Mapping[str, str]) -> Path:
  """The folder for caches of this package, as the XDG specification has it."""
  caches = environment.get("XDG_CACHE_HOME", "")
  above = Path(caches) if Path(caches).is_absolute() else Path("~/.cache")
  return above / "perl_jax" / "compiled"


def machine() -> str:
  """A name for what machine code depends on and JAX's keys do not cover.

  Code for a CPU may use any instruction of the one that it was compiled on, and
  a home directory may be shared by machines that differ.
  """
  lines = [platform.machine(), platform.system()]
  cpu = Path("/proc/cpuinfo")
  if cpu.is_file():
    about = ("flags", "features", "model name")
    found = {
      line
      for line in cpu.read_text(errors="replace").splitlines()
      if line.lower().startswith(about)
    }
    lines += sorted(found)
  digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
  return f"jax-{jax.__version__}-{digest[:12]}"


def remove_broken(directory: Path) -> list[Path]:
  """Removes entries that a killed process has not written to their end.

  JAX would warn about such an entry at each start and never replace it. It
  notes when an entry was used once the entry is written, so that one without a
  note is not whole.

  Returns:
    The entries that were removed.
  """
  removed = []
  with filelock.FileLock(directory / _LOCK):
    for path in sorted(directory.glob(f"*{_ENTRY}")):
      used = path.with_name(path.name.removesuffix(_ENTRY) + _USED)
      if not used.is_file() or not used.stat().st_size:
        path.unlink(missing_ok=True)
        used.unlink(missing_ok=True)
        removed.append(path)
  return removed
