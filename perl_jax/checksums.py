"""SHA-256 of the files below a directory, kept in a list inside it.

Reading arrays from a file in which a bit has flipped gives other numbers and no
error. The list tells: it has a line for each file, as `sha256sum` writes and
checks them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import logging

from perl_jax import files, hosts

LISTING = "sha256.txt"


def write(directory: Path, covers: Callable[[Path], bool]) -> None:
  """Writes the list of a directory whose files are complete.

  Args:
    directory: Where the list is written.
    covers: Whether a file, given by its path below `directory`, is listed.
  """
  write_of(directory, [directory / p for p in _files(directory) if covers(p)])


def write_of(directory: Path, paths: Iterable[Path]) -> None:
  """Writes the list of some files below a directory, atomically."""
  lines = [
    f"{_digest(path)}  {path.relative_to(directory).as_posix()}\n"
    for path in paths
  ]
  files.write_text(directory / LISTING, "".join(lines))


def fault(directory: Path, only: str = "") -> str | None:
  """What is wrong with the files of a directory, by their list.

  Args:
    directory: Where the list is.
    only: Path below the directory of the one file to look at, or of a folder
      with several; "" for all.

  Returns:
    A sentence without a full stop that names the first file that differs from
    the list, is missing from the directory, or that the list itself cannot be
    read; None if all files are as they were written. A directory without a list
    has no fault that could be told.
  """
  listing = directory / LISTING
  try:
    lines = listing.read_text(encoding="utf-8").splitlines()
  except FileNotFoundError:
    return None
  except (OSError, UnicodeDecodeError) as error:
    return f"{listing} cannot be read: {error}"
  if not lines:
    return f"{listing} is empty"
  for line in lines:
    digest, _, name = line.partition("  ")
    if len(digest) != 64 or not name:
      return f"{listing} has a line that is no SHA-256 with a name: {line!r}"
    if only not in ("", name) and not name.startswith(f"{only}/"):
      continue
    path = directory / name
    if not path.is_file():
      return f"{path} is missing"
    if _digest(path) != digest:
      return (
        f"{path} is not as it was written (its SHA-256 differs from that in"
        f" {LISTING})"
      )
  return None


def require_whole(directory: Path) -> None:
  """Checks the files of a checkpoint against their checksums.

  Raises:
    ValueError: A file differs or is missing; names it and the way out.
  """
  found = fault(directory)
  if not found:
    return
  others = [path for path in numbered(directory.parent) if path != directory]
  way_out = (
    "run the stage's command again: it puts this checkpoint aside and goes on"
    " from the latest of the others."
  )
  if not any(fault(path) is None for path in others):
    way_out = (
      "train the stage anew, as no other checkpoint is whole: remove"
      f" {directory.parents[1]} and run the command that made it."
    )
  raise ValueError(
    f"The checkpoint {directory} is damaged: {found}. Restore that file, or"
    f" {way_out}"
  )


def numbered(directory: Path) -> list[Path]:
  """Directories of the complete checkpoints, the oldest first."""
  found = [path for path in directory.iterdir() if path.name.isdigit()]
  return sorted(found, key=lambda path: int(path.name))


def _faults(directory: Path) -> dict[str, str | None]:
  saved = numbered(directory) if directory.is_dir() else []
  return {path.name: fault(path) for path in saved}


def put_damaged_aside(directory: Path, aside: Path) -> None:
  """Moves damaged checkpoints to the directory `aside`, and says so.

  Process 0 reads them, and all have to call it.

  Raises:
    ValueError: There are checkpoints, and all of them are damaged.
  """
  faults = json.loads(
    hosts.decided_by_primary(lambda: json.dumps(_faults(directory)))
  )
  faults = {directory / name: found for name, found in faults.items()}
  saved = list(faults)
  damaged = [path for path in saved if faults[path]]
  if damaged and len(damaged) == len(saved):
    raise ValueError(
      f"All checkpoints in {directory} are damaged: "
      + "; ".join(f"{faults[path]}" for path in damaged)
      + ". Restore the files, or remove the workdir to start afresh."
    )
  for path in saved:
    if not (path / LISTING).exists():
      logging.warning(
        "The checkpoint of step %s has no %s, which an older version did not"
        " write: its files are taken as they are.",
        path.name,
        LISTING,
      )
  # All know before the first makes or changes a directory.
  hosts.barrier("checkpoints looked at")
  for path in damaged:
    target = aside / path.name
    logging.warning(
      "The checkpoint of step %s is damaged: %s. It is put aside as %s, and the"
      " run goes on from an earlier one.",
      path.name,
      faults[path],
      target,
    )
    if hosts.is_primary():
      shutil.rmtree(target, ignore_errors=True)
      target.parent.mkdir(exist_ok=True)
      path.rename(target)
  hosts.barrier("checkpoints put aside")


def _files(directory: Path) -> list[Path]:
  """Paths of the files below a directory, relative to it and sorted."""
  return sorted(
    path.relative_to(directory)
    for path in directory.rglob("*")
    if path.is_file() and path.name != LISTING
  )


def _digest(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
