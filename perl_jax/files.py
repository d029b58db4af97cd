"""Reads and writes JSON, JSON lines and files; every write is atomic.

JSON has no non-finite numbers: they are written as the strings "nan", "inf" and
"-inf", which `float()` reads back. Text is ASCII with escapes, so that a lone
surrogate in a response cannot stop a run.
"""

import base64
import contextlib
import datetime
import decimal
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perl_jax import disk, json_text


class Line(NamedTuple):
  """A line of a JSON-lines file.

  Attributes:
    number: Number of the line in the file, from 1.
    text: The line as it is in the file, without the line break.
    row: The object in it.
  """

  number: int
  text: bytes
  row: dict[str, object]


def jsonl_lines(
  path: str | Path, *, torn_end: bool = False, way_out: str = ""
) -> Iterator[Line]:
  """Yields the lines of a JSON-lines file; blank ones are skipped.

  Args:
    path: The file.
    torn_end: Whether to leave out a last line that is no JSON object and has no
      line break: its writer was killed, or is still writing.
    way_out: A sentence that ends the message of an error.

  Raises:
    ValueError: A line is not one JSON object; names the file and the line.
  """
  lines = Path(path).read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json_text.parse(line)
      wrong = f"is {type(row).__name__}, not an object"
    except json_text.Fault as error:
      row, wrong = None, error.what
    if isinstance(row, dict):
      yield Line(number, line, row)
    elif not torn_end or number < len(lines):
      more = f". {way_out}" if way_out else ""
      raise ValueError(
        f"{path}:{number}: not a JSON object ({wrong}): {line[:60]!r}{more}"
      )


def read_jsonl(
  path: str | Path, *, torn_end: bool = False
) -> list[dict[str, object]]:
  """The objects of a JSON-lines file; see `jsonl_lines`."""
  return [line.row for line in jsonl_lines(path, torn_end=torn_end)]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
  """Writes a JSON-lines file atomically."""
  write_text(path, "".join(map(json_line, rows)))


def write_json(path: str | Path, value: Mapping[str, object]) -> None:
  """Writes a file with one JSON object, atomically."""
  write_text(path, json.dumps(_plain(value), indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
  """Writes a text file atomically: if that fails, the old file remains."""
  write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
  """Writes a file atomically: if that fails, the old file remains.

  Raises:
    disk.CannotWrite: The file system refuses.
  """
  path = Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  with disk.writing(path.name, path.parent, len(content)):
    try:
      with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      temporary.replace(path)
    finally:
      temporary.unlink(missing_ok=True)


def append(
  file: io.FileIO,
  rows: Iterable[Mapping[str, object]],
  *,
  durable: bool = False,
) -> bytes:
  """Appends rows to an open JSON-lines file: all of them, or none.

  Args:
    file: File that was opened for appending, without a buffer.
    rows: Objects, a line each.
    durable: Whether to wait until they are on the disk, where they outlive the
      machine too, and not only this process.

  Returns:
    What was appended.

  Raises:
    disk.CannotWrite: The file system refuses.
  """
  content = "".join(map(json_line, rows)).encode("ascii")
  before, path = file.seek(0, os.SEEK_END), Path(str(file.name))
  try:
    with disk.writing(path.name, path.parent, len(content)):
      left = memoryview(content)
      while left:
        left = left[file.write(left) :]
      if durable:
        os.fsync(file.fileno())
  except disk.CannotWrite:
    with contextlib.suppress(OSError):
      file.truncate(before)
    raise
  return content


def numbers(value: Any) -> Any:
  """What was read, with the numbers that its strings stand for.

  To be used where no string is a text; see the module on non-finite floats.
  """
  if isinstance(value, str):
    return float(value)
  if isinstance(value, Mapping):
    return {key: numbers(item) for key, item in value.items()}
  return list(map(numbers, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def emptied(directory: Path, keep: str = "") -> Iterator[None]:
  """Empties a directory before the block, and again if the block fails.

  Args:
    directory: The directory.
    keep: Name of a file that stays.
  """

  def remove():
    for path in directory.iterdir():
      if path.is_dir():
        shutil.rmtree(path)
      elif path.name != keep:
        path.unlink()

  remove()
  try:
    yield
  except BaseException:
    remove()
    raise


def json_line(row: Mapping[str, object]) -> str:
  """One object as a line of a JSON-lines file, the line break included."""
  return json.dumps(_plain(row), allow_nan=False) + "\n"


def _text_of(value: bytes) -> str:
  """Bytes as the text that they are, or else in base64."""
  try:
    return value.decode()
  except UnicodeDecodeError:
    return base64.b64encode(value).decode()


def _plain(value: object) -> object:
  """The value in types that JSON has; see the module on non-finite floats."""
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else str(float(value))
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, Path):
    return str(value)
  if hasattr(value, "shape") and hasattr(value, "dtype"):
    return _plain(np.asarray(value).tolist())
  if isinstance(value, datetime.date | datetime.time):  # or a date and a time
    return value.isoformat()
  if isinstance(value, datetime.timedelta):
    return str(value)
  if isinstance(value, decimal.Decimal):
    return _plain(float(value))
  if isinstance(value, bytes):
    return _text_of(value)
  if isinstance(value, Iterable):
    return [_plain(item) for item in value]
  raise ValueError(f"{value!r} ({type(value).__name__}) cannot be written")
