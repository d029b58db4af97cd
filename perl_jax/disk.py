"""What a file system refuses, in one sentence: what, where, how much it lacks.

A disk that is full or read-only is no bug. Whoever writes says what it writes,
and `writing` turns the refusal, whichever library met it, into a `CannotWrite`
that names the way out.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

# No room, no permission, or a path that cannot be there.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_REFUSALS = (
  *_NO_ROOM,
  *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO),
  *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST),
)
# As Python, TensorStore and the libraries in Rust write the number.
_NUMBER = re.compile(r"(?:Errno |os_error_code='|os error )(\d+)")


class CannotWrite(OSError):
  """A file system that refuses to write; the message is for people."""


def refusal(error: BaseException | None, *, chain: bool = True) -> int | None:
  """The number of the system's error if it is a refusal; None otherwise.

  Args:
    error: What was raised, by Python or by a library that only has a text.
    chain: Whether to look at what the error came from as well.
  """
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    numbers = list(map(int, _NUMBER.findall(str(error))))
    if isinstance(error, OSError) and error.errno:
      numbers.insert(0, error.errno)
    for number in numbers:
      if number in _REFUSALS:
        return number
    error = (error.__cause__ or error.__context__) if chain else None
  return None


def sentence(what: str, path: Path, number: int, needed: int = 0) -> str:
  """Why something could not be written, and the way out, on one line.

  Args:
    what: What was to be written, such as "the checkpoint of step 12".
    path: File or directory that it was to be written to.
    number: Number of the system's error.
    needed: Bytes that it takes; 0 if they are not known.
  """
  said = f"{what} cannot be written to {path}: {os.strerror(number)}"
  if number in _NO_ROOM:
    free = free_bytes(path)
    said += f" ({_mebibytes(free)} are free there"
    if needed > free:
      said += f", {_mebibytes(needed)} are needed, and so"
      said += f" {_mebibytes(needed - free)} are missing"
    return (
      f"{said}). Make room, or move the run elsewhere, and start it again: what"
      " was finished is kept."
    )
  if number == errno.EFBIG:
    return f"{said}. Raise the limit for the size of a file (ulimit -f)."
  return f"{said}. Give another path, or the permission to write there."


@contextlib.contextmanager
def writing(
  what: str, path: str | Path, needed: int = 0, *, unfinished: str = ""
) -> Iterator[None]:
  """Around what writes to `path`.

  Args:
    what, path, needed: See `sentence`.
    unfinished: Pattern of what a refusal leaves half-written in the directory
      `path`, and is removed.

  Raises:
    CannotWrite: The file system refuses. Other errors are left as they are.
  """
  try:
    yield
  except CannotWrite:
    raise
  except Exception as error:
    number = refusal(error)
    if number is None:
      raise
    said = sentence(what, Path(path), number, needed)
    for left in Path(path).glob(unfinished) if unfinished else ():
      shutil.rmtree(left, ignore_errors=True)
    raise CannotWrite(said) from error


def require_room(what: str, path: Path, needed: int) -> None:
  """Checks that a file system has room for so many bytes.

  Raises:
    CannotWrite: It has not.
  """
  if free_bytes(path) < needed:
    raise CannotWrite(sentence(what, path, errno.ENOSPC, needed))


def free_bytes(path: Path) -> int:
  """Bytes that may still be written where `path` is, or would be."""
  path = path.absolute()
  while not path.exists() and path != path.parent:
    path = path.parent
  return shutil.disk_usage(path).free


def size(directory: Path) -> int:
  """Bytes of all files below a directory."""
  return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def explain(error: BaseException) -> str | None:
  """What to say of a refusal that nobody has put in words; None for others."""
  number = refusal(error, chain=False)
  if number is None or isinstance(error, CannotWrite):
    return None if number is None else str(error)
  path = Path(getattr(error, "filename", None) or os.getcwd())
  if number in _NO_ROOM:
    return sentence("a file", path, number)
  return (
    f"{path}: {os.strerror(number)}. Give another path, or the permission to"
    " read and write there."
  )


def _mebibytes(count: int) -> str:
  return f"{count / 2**20:.2f} MiB"
