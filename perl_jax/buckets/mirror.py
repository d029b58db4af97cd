"""A workdir that is written on this machine and kept in a bucket.

Objects cannot be appended to or renamed, and so files are sent whole: whenever
a checkpoint, a summary or any other file than the lines of a log has changed,
and lines alone once a minute. Their order leaves a workdir to go on from
wherever it is cut off: lines come before the checkpoint that stands on them,
and a summary last of all. A checkpoint has an object `.unfinished` in it as
long as it is being sent.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from perl_jax.buckets import addresses, copies, unsent
from perl_jax.buckets.store import BucketError, Store

LOOK_SECONDS = 2.0
# Lines that nothing else has come after are sent so often.
LINES_SECONDS = 60.0
_SUMMARY, _CONFIG = unsent.SUMMARY, unsent.CONFIG
# What a tracker has got, and what W&B writes.
_TRACKERS, _WANDB = "trackers.json", "/wandb/"
# Files that say of others that they are complete, in this order. Rows so far
# are those of a config, and follow it.
_LAST = (
  *("sha256.txt", "adapter_config.json", _CONFIG, "so_far.jsonl", _SUMMARY),
)
_ALONE = contextlib.nullcontext()
Undisturbed = Callable[[], contextlib.AbstractContextManager[None]]


class Mirror:
  """Sends what changes in a directory to a store.

  Attributes:
    path: The directory.
  """

  def __init__(
    self, store: Store, path: Path, may_write: Callable[[], bool] | None
  ):
    """Opens it; nothing is read.

    Args:
      store: The store.
      path: See the attributes.
      may_write: See `mirrored`.
    """
    self.path, self._store, self._may_write = path, store, may_write
    self._seen: dict[str, tuple[int, int]] = {}
    self._sent = time.monotonic()
    self._there: set[str] = set()
    self._pushing = threading.Lock()
    # What was sent before the run had begun, for its other hosts.
    self._early: set[str] = set()

  def pull(self) -> None:
    """Makes the directory what the store has; one that is empty is not made.

    What could not be sent from here is kept, and sent next; see `unsent`.
    """
    objects = self._store.listed()
    kept = unsent.names(self._store, objects, self.path)
    if kept:
      logging.info(
        "%s: %d files of this machine are newer, and are sent.",
        self._store.address,
        len(kept),
      )
    copies.pull(self._store, objects, self.path, kept)
    if not copies.complete(objects) and not kept:
      shutil.rmtree(self.path, ignore_errors=True)
    self._there = {name for name in objects if not copies.is_lock(name)}
    here = copies.files_below(self.path)
    self._seen = {name: here[name] for name in here.keys() - kept}

  @contextlib.contextmanager
  def sending(
    self, undisturbed: Undisturbed = contextlib.nullcontext
  ) -> Iterator[None]:
    """Sends while the block runs, from another thread, and at its end.

    Args:
      undisturbed: See `mirrored`.

    Raises:
      BucketError: The block has worked, and the store refuses. After an error
        of the block, which goes on, it is logged.
    """
    import jax

    from perl_jax import hosts

    over, ending = threading.Event(), threading.Lock()

    def send():
      said = False
      while not over.wait(LOOK_SECONDS):
        try:
          if self.is_due():
            self.push()
            said = False
        except Exception as error:
          if not said:
            logging.warning(
              "%s does not have the latest: %s It is tried again.",
              self._store.address,
              error,
            )
          said = True

    thread = threading.Thread(target=send, name="bucket", daemon=True)
    thread.start()

    def end():
      with ending:  # who comes second waits until it has been done
        if over.is_set():
          return
        over.set()
        thread.join()
        if self._is_workdir():
          self._push_last()
        else:
          self._drop(self._early)

    def end_at_once():
      with only_said():
        end()

    # Alone, a second signal leaves at once.
    several = jax.process_count() > 1
    with hosts.undone_by_others(end_at_once) if several else _ALONE:
      try:
        yield
      except BaseException:
        with undisturbed():
          end_at_once()
        raise
      with undisturbed():
        end()

  def is_due(self) -> bool:
    """Whether a file has changed, one of lines a minute ago or more."""
    here = copies.files_below(self.path)
    if time.monotonic() - self._sent < LINES_SECONDS:
      here, seen = _telling(here), _telling(self._seen)
    else:
      seen = self._seen
    return self._is_workdir() and seen != here

  def push(self) -> None:
    """Sends what has changed since the last time; see the module.

    Raises:
      BucketError: The store refuses, or another run has the workdir.
    """
    with self._pushing:
      self._push()

  def _push(self) -> None:
    if self._may_write and not self._may_write():
      raise BucketError(
        f"{self._store.address} is not of this run any more: nothing is sent."
      )
    here = copies.files_below(self.path)
    changed = {
      name for name, state in here.items() if state != self._known(name)
    }
    gone = self._there - here.keys() if self._may_write else set()
    self._drop(name for name in gone if copies.base_of(name) == _SUMMARY)
    plain = {name for name in changed if not copies.checkpoint_of(name)}
    last = {name for name in plain if copies.base_of(name) in _LAST}
    self._send(plain - last)
    new = {copies.checkpoint_of(name) for name in changed} - {""}
    old = {copies.checkpoint_of(name) for name in gone} - {""} - new
    # New ones first: there is always one to go on from.
    for checkpoint in [
      *sorted(new, key=copies.step_of),
      *sorted(old, key=copies.step_of),
    ]:
      self._renew(checkpoint, here, changed, gone)
    self._drop(name for name in gone if not copies.checkpoint_of(name))
    for base in _LAST:
      names = {name for name in last if copies.base_of(name) == base}
      for name in sorted(names, key=lambda name: -name.count("/")):
        self._send({name})
    # A file that has changed meanwhile has another time by now.
    self._seen, self._sent = here, time.monotonic()
    objects = self._store.listed()
    self._there = {name for name in objects if not copies.is_lock(name)}
    same = {
      name: objects[name]
      for name, state in copies.files_below(self.path).items()
      if name in objects and here.get(name) == state
    }
    copies.write_index(self._store.address, self.path, same)

  def share(self) -> None:
    """Sends what there is for the other hosts of the run, begun or not.

    Raises:
      BucketError: As `push`.
    """
    begun, before = self._is_workdir(), set(self._there)
    self.push()
    if not begun:
      self._early |= self._there - before

  def _push_last(self) -> None:
    try:
      self.push()
    except BucketError as error:
      raise BucketError(
        f"{error} What was not sent is in {addresses.here(self.path)} on this"
        " machine: the same command sends it, unless another has written to"
        f" {self._store.address} before."
      ) from error

  def _known(self, name: str) -> tuple[int, int] | None:
    return self._seen.get(name) if name in self._there else None

  def _renew(self, checkpoint, here, changed, gone) -> None:
    """Sends a checkpoint, or removes one of which anything is gone."""
    mark, inside = f"{checkpoint}/{copies.UNFINISHED}", f"{checkpoint}/"
    there = {name for name in self._there if name.startswith(inside)} - {mark}
    mine = {name for name in here if name.startswith(inside)}
    self._store.write(mark, b"")
    if there and gone & there and not mine & changed:
      self._drop(there)
      self._store.remove(mark)
      return
    self._drop(gone & there)
    if self._send(mine & changed):
      self._store.remove(mark)

  def _send(self, names: set[str]) -> bool:
    """Sends files; returns whether all of them were there."""
    missing = []

    def send(name):
      try:
        self._store.upload(self.path / name, name)
      except FileNotFoundError:
        missing.append(name)

    copies.each(send, sorted(names))
    return not missing

  def _drop(self, names) -> None:
    copies.each(self._store.remove, list(names))

  def _is_workdir(self) -> bool:
    return (self.path / _CONFIG).is_file()


@contextlib.contextmanager
def only_said() -> Iterator[None]:
  """Logs an error of the block, in the place of raising it.

  What has ended the run before says how it ends: the message, and the exit
  status, by which a scheduler starts it again.
  """
  try:
    yield
  except Exception as error:
    logging.error("%s", error)


def _telling(found) -> dict[str, tuple[int, int]]:
  """Without lines, and what trackers write as they are sent."""
  return {
    name: state
    for name, state in found.items()
    if not name.endswith(".jsonl")
    and "tfevents" not in name
    and copies.base_of(name) != _TRACKERS
    and _WANDB not in f"/{name}"
  }
