"""Copies of what lies in buckets, each made once and kept.

A copy that was made earlier is used again as far as the objects are the same.
"""

import contextlib
import json
import os
import queue
import re
import shutil
import socket
import threading
import time
import types
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import filelock
from absl import logging

from perl_jax import disk, files
from perl_jax.buckets import addresses
from perl_jax.buckets.store import BucketError, Object, Store

T = TypeVar("T")

# Lies in a checkpoint that is not complete: it is being sent, or removed.
UNFINISHED = ".unfinished"
LOCK = "lock.json"
# What another host has not touched for so long is no run any more.
_OLD_SECONDS = 300.0
_CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/\d+(?=/)")
_AT_ONCE = 8

# Addresses that this process has copied, and workdirs that it writes.
copied: set[str] = set()


def fetch(address: str) -> Path:
  """The path of a copy of what lies at an address, a file or a directory.

  It is made once in the life of a process.

  Raises:
    FileNotFoundError: Nothing lies there.
    BucketError: It cannot be read.
  """
  address = addresses.check(address)
  path = addresses.path_of(address)
  above = {address, *_above(address)}
  if not above & copied and not _is_written(path):
    with locked(address):
      objects = Store(address).listed()
      if not objects:
        raise FileNotFoundError(f"{address}: nothing lies there.")
      pull(Store(address), objects, path)
    copied.add(address)
  return path


def present(path: Path) -> Path:
  """The path itself; if it stands for an address, there is a copy now.

  Where nothing lies at the address, there is none.
  """
  address = addresses.address_of(path)
  if address:
    with contextlib.suppress(FileNotFoundError):
      fetch(address)
  return path


def pull(
  store: Store,
  objects: Mapping[str, Object],
  path: Path,
  kept: Collection[str] = (),
) -> None:
  """Makes a path of this machine what lies in a store.

  Unfinished checkpoints and locks are left out; files that are not in the store
  are removed.

  Args:
    store: The store.
    objects: What lies in it.
    path: The file or directory to make.
    kept: Names that are left as they are here, which may be nowhere.
  """
  known = read_index(store.address)
  whole = complete(objects)
  wanted = {name: whole[name] for name in whole.keys() - set(kept)}
  if "" not in wanted:
    if path.is_file():
      path.unlink()
    for name in files_below(path).keys() - wanted.keys() - set(kept):
      (path / name).unlink()
      _remove_empty((path / name).parent, path)
  elif path.is_dir():
    shutil.rmtree(path)
  stale = [
    name
    for name, found in wanted.items()
    if known.get(name) != [found.tag, *_state(path / name)]
  ]
  needed = sum(wanted[name].size for name in stale)
  if stale:
    disk.require_room(f"the copy of {store.address}", path, needed)
    logging.info("%s: %.1f MB are copied to here.", store.address, needed / 1e6)

  def partial_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")

  def download(name: str) -> None:
    target = path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(target)
    try:
      with disk.writing(target.name, target.parent, wanted[name].size):
        store.download(name, partial)
        partial.replace(target)
    except FileNotFoundError as error:
      raise BucketError(
        f"{store.address}/{name} was removed while it was read: a run that"
        " still goes on writes there. Run the command again."
      ) from error
    finally:
      partial.unlink(missing_ok=True)

  try:
    each(download, stale)
  except BaseException:
    # Threads that go on have no time left to do it themselves.
    for name in stale:
      partial_of(path / name).unlink(missing_ok=True)
    raise
  before = {name: known[name] for name in known if name in kept}
  write_index(store.address, path, wanted, before)


def _remove_empty(directory: Path, root: Path) -> None:
  """Removes a directory below the root, and those above it that are empty."""
  with contextlib.suppress(OSError):  # one is not empty
    while directory != root:
      directory.rmdir()
      directory = directory.parent


def each(act: Callable[[T], object], names: Iterable[T]) -> None:
  """Calls `act` with each name, some at once; raises the first error.

  Who is told to stop waits for no call, nor does the process, as for those of
  a pool of `concurrent.futures`: nothing begins any more, and what is under way
  ends with the process.
  """
  names = [*names]
  left, ended = iter(names), queue.SimpleQueue()

  def work():
    try:
      for name in left:
        act(name)
      ended.put(None)
    except BaseException as error:
      _exhaust(left)
      ended.put(error)

  count = min(_AT_ONCE, len(names))
  try:
    for _ in range(count):
      threading.Thread(target=work, name="transfer", daemon=True).start()
    errors = [error for _ in range(count) if (error := ended.get())]
  except BaseException:
    _exhaust(left)
    raise
  if errors:
    raise errors[0]


def _exhaust(left: Iterator[object]) -> None:
  for _ in left:
    pass


def complete(objects: Mapping[str, Object]) -> dict[str, Object]:
  """The objects that a copy has; see `pull`."""
  unfinished = {
    checkpoint_of(name) for name in objects if base_of(name) == UNFINISHED
  } - {""}
  return {
    name: found
    for name, found in objects.items()
    if checkpoint_of(name) not in unfinished and not is_lock(name)
  }


def is_lock(name: str) -> bool:
  """Whether an object is of the lock of a workdir; the store's own."""
  base = base_of(name)
  return base.startswith("lock.") and base.endswith(".json")


def checkpoint_of(name: str) -> str:
  """The checkpoint that a file belongs to, by its name; "" if it is none's."""
  found = _CHECKPOINT.match(name)
  return found.group() if found else ""


def step_of(checkpoint: str) -> tuple[str, int]:
  """(folder, step) of a checkpoint that `checkpoint_of` names."""
  above, _, step = checkpoint.rpartition("/")
  return above, int(step)


def base_of(name: str) -> str:
  """The last part of the name of an object."""
  return name.rpartition("/")[2]


def files_below(directory: Path) -> dict[str, tuple[int, int]]:
  """(bytes, time) of the files below a directory that are no one's scratch."""
  found = {}
  for above, folders, names in os.walk(directory):
    folders[:] = [f for f in folders if not _is_scratch(f)]
    for name in names:
      if _is_scratch(name) or name == LOCK:
        continue
      path = Path(above, name)
      state = _state(path)
      if state != (-1, -1):
        found[path.relative_to(directory).as_posix()] = state
  return found


def _is_scratch(name: str) -> bool:
  hidden = name.startswith(".") and name.endswith((".tmp", ".partial"))
  return hidden or ".orbax-checkpoint-tmp" in name or name[:6] == f".{LOCK[:5]}"


def _state(path: Path) -> tuple[int, int]:
  try:
    about = path.stat()
  except OSError:
    return (-1, -1)
  return about.st_size, about.st_mtime_ns


def read_index(address: str) -> dict[str, list]:
  """Tag, bytes and time of each file of a copy, as it was when it was made."""
  try:
    return json.loads(_beside(address, ".json").read_text())
  except (OSError, ValueError):
    return {}


def write_index(
  address: str,
  path: Path,
  objects: Mapping[str, Object],
  before: Mapping[str, list] = types.MappingProxyType({}),
) -> None:
  """Writes what `read_index` reads: `before`, and how the objects are now."""
  listed = {
    name: [found.tag, *_state(path / name)] for name, found in objects.items()
  }
  files.write_json(_beside(address, ".json"), {**before, **listed})


def locked(address: str) -> filelock.BaseFileLock:
  """A lock in which one process of this machine copies an address."""
  return filelock.FileLock(_beside(address, ".lock"))


def about() -> Path:
  """The directory of files about copies, which are in none of them."""
  directory = addresses.root() / "about"
  directory.mkdir(parents=True, exist_ok=True)
  return directory


def _beside(address: str, suffix: str) -> Path:
  """A file about a copy."""
  return about() / f"{urllib.parse.quote(address, safe='')}{suffix}"


def _above(address: str) -> list[str]:
  parts = address.split("/")
  return ["/".join(parts[:end]) for end in range(4, len(parts))]


def _is_written(path: Path) -> bool:
  """Whether a process of this machine writes there, which has the newest."""
  for directory in (path, *path.parents):
    if directory == addresses.root():
      return False
    lock = directory / LOCK
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      who = json.loads(lock.read_text())
      if who["host"] == socket.gethostname():
        os.kill(who["pid"], 0)
        return True
      if time.time() - lock.stat().st_mtime < _OLD_SECONDS:
        return True
  return False
