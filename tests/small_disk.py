"""A file system that is full soon, where the machine lets a test mount one."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(directory: Path, size: str) -> Iterator[Path]:
  """Mounts a tmpfs of a size, "2m", on a directory; skips where it may not."""
  directory.mkdir()
  command = [
    "mount",
    "-t",
    "tmpfs",
    "-o",
    f"size={size}",
    "perl_jax",
    directory,
  ]
  try:
    done = subprocess.run(command, capture_output=True)
  except FileNotFoundError:
    pytest.skip("needs the command mount")
  if done.returncode:
    pytest.skip("needs the right to mount a file system in memory")
  try:
    yield directory
  finally:
    subprocess.run(["umount", "-l", directory], check=True)
