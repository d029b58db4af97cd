"""What a run has written on this machine and could not send to its bucket.

A login expires, or the process is killed: the copy of the workdir is then ahead
of the bucket. The same command goes on from the copy, unless another has
written to the bucket since.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from perl_jax.buckets import copies
from perl_jax.buckets.store import Object, Store

CONFIG, SUMMARY = "config.json", "summary.json"
_BYTES = 2**20


def names(store: Store, objects: Mapping[str, Object], path: Path) -> set[str]:
  """Names in which the copy of a workdir is ahead of its bucket.

  Those are files that have changed here, and what was removed here: a summary,
  and checkpoints before the newest. Other files that are missing here have been
  lost.

  Args:
    store: The store.
    objects: What lies in it.
    path: The copy.

  Returns:
    Nothing if no file has changed, or if another has written to the bucket.
  """
  here, known = copies.files_below(path), copies.read_index(store.address)
  changed = {
    name for name, state in here.items() if known.get(name, [])[1:] != [*state]
  }
  if not changed or CONFIG not in here:
    return set()
  gone = (here.keys() & known.keys()) - objects.keys()
  if any(not _is_summary(name) for name in gone):
    return set()  # another has removed it
  for name, found in objects.items():
    same = known.get(name, [None])[0] == found.tag
    own = copies.base_of(name) == copies.UNFINISHED or copies.is_lock(name)
    if not same and not own and not _begins(store, name, path):
      return set()
  newest = _newest(here)
  return changed | {
    name
    for name in objects.keys() - here.keys()
    if _is_summary(name) or _is_before(name, newest)
  }


def _begins(store: Store, name: str, path: Path) -> bool:
  """Whether a file begins with what an object holds.

  So it is if a send was cut off before it was noted: lines have come since.
  """
  if not (path / name).is_file():
    return False
  theirs = path / f".{name.replace('/', '-')[-100:]}.tmp"
  try:
    store.download(name, theirs)
    with theirs.open("rb") as first, (path / name).open("rb") as second:
      while part := first.read(_BYTES):
        if second.read(len(part)) != part:
          return False
    return True
  except FileNotFoundError:
    return False
  finally:
    theirs.unlink(missing_ok=True)


def _is_summary(name: str) -> bool:
  """Whether it is what a run removes that goes on for more steps."""
  return copies.base_of(name) == SUMMARY


def _newest(found: Iterable[str]) -> dict[str, int]:
  """The last step of which there is a checkpoint, by the folder of them."""
  newest: dict[str, int] = {}
  for checkpoint in filter(None, map(copies.checkpoint_of, found)):
    above, step = copies.step_of(checkpoint)
    newest[above] = max(step, newest.get(above, 0))
  return newest


def _is_before(name: str, newest: Mapping[str, int]) -> bool:
  checkpoint = copies.checkpoint_of(name)
  if not checkpoint:
    return False
  above, step = copies.step_of(checkpoint)
  return step < newest.get(above, -1)
