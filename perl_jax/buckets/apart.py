"""A workdir of a bucket on several hosts, of which each has a copy of its own.

Process 0 alone writes it and sends what it has written. The copies of the other
hosts are made anew where they read it: when the run begins, and where one stage
follows another. Processes that see the directory of process 0 use that, as on
one machine.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from perl_jax.buckets import addresses, copies
from perl_jax.buckets.store import Store

# How to renew the copies of a workdir, by its path.
_renew: dict[Path, Callable[[], None]] = {}


def is_apart(path: str | Path) -> bool:
  """Whether a path is in a workdir of which hosts of the run have copies."""
  return _renewing(path) is not None


def renew(path: str | Path) -> None:
  """Makes the copies of the other hosts what process 0 has written there.

  All processes have to call it. Nothing is done for a path that all see.

  Raises:
    BucketError: The bucket cannot be written or read.
  """
  found = _renewing(path)
  if found is not None:
    found()


@contextlib.contextmanager
def copied(
  address: str, push: Callable[[], None] = lambda: None
) -> Iterator[None]:
  """Gives all hosts of a run the workdir of an address while the block runs.

  All processes have to call it.

  Args:
    address: The address; the directory of process 0 is what it is to be.
    push: Sends what process 0 has written; called there alone.

  Raises:
    BucketError: The bucket cannot be written or read.
  """
  import jax

  if jax.process_count() == 1:
    yield
    return
  sees, all_see = _looked()
  if all_see:
    yield
    return
  from perl_jax import hosts
  from perl_jax.hosts import signals

  path, store = addresses.path_of(address), Store(address)

  def again():
    with signals.deferred():
      if hosts.is_primary():
        push()
      hosts.barrier("sent")
      if not sees:
        with copies.locked(store.address):
          copies.pull(store, store.listed(), path)
      hosts.barrier("copied")

  _renew[path] = again
  try:
    again()
    yield
  finally:
    del _renew[path]


@contextlib.contextmanager
def sent_at_end() -> Iterator[None]:
  """After the block the hosts of a run wait until process 0 has sent the rest.

  They do so if it has worked, or if all were told to stop in it.
  """
  from perl_jax import hosts
  from perl_jax.hosts import signals

  def wait():
    # Who is told to stop meanwhile does not leave before the others.
    with signals.deferred():
      hosts.barrier("sent at the end")

  try:
    yield
  except signals.Stopped as stopped:
    if stopped.together:
      wait()
    raise
  wait()


def _renewing(path: str | Path) -> Callable[[], None] | None:
  path = Path(path).absolute()
  found = (_renew.get(above) for above in (path, *path.parents))
  return next(filter(None, found), None)


def _looked() -> tuple[bool, bool]:
  """Whether this process sees process 0's copies, and whether all do."""
  from perl_jax import hosts

  name = hosts.decided_by_primary(lambda: f"{uuid.uuid4().hex}.seen")
  mark = copies.about() / name
  hosts.on_primary("mark", mark.touch)
  sees = hosts.sees(mark)
  all_see = not hosts.first_message("" if sees else "another file system")
  hosts.on_primary("mark seen", mark.unlink)
  return sees, all_see
