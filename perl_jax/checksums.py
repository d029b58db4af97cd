"""SHA-256 of the files below a directory, kept in a list inside it.

Reading arrays from a file in which a bit has flipped gives other numbers and no
error. The list tells: it has a line for each file, as `sha256sum` writes and
checks them.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

LISTING = "sha256.txt"


def write(directory: Path, covers: Callable[[Path], bool]) -> None:
  """Writes the list of a directory whose files are complete.

  Args:
    directory: Where the list is written.
    covers: Whether a file, given by its path below `directory`, is listed.
  """
  lines = [
    f"{_digest(directory / path)}  {path.as_posix()}\n"
    for path in _files(directory)
    if covers(path)
  ]
  (directory / LISTING).write_text("".join(lines))


def fault(directory: Path) -> str | None:
  """What is wrong with the files of a directory, by their list.

  Returns:
    A sentence without a full stop that names the first file that differs from
    the list, is missing from the directory, or that the list itself cannot be
    read; None if all files are as they were written. A directory without a list
    has no fault that could be told.
  """
  listing = directory / LISTING
  try:
    lines = listing.read_text(encoding="ascii").splitlines()
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
    path = directory / name
    if not path.is_file():
      return f"{path} is missing"
    if _digest(path) != digest:
      return f"{path} is not as it was written (its SHA-256 differs)"
  return None


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
