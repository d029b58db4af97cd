"""Reads the rows of a file, whatever its format."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from perl_jax.data.sources.jsonl.messages import found


def rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the file and line number of every row, and its fields."""
  number = 0
  try:
    with file.open("rb") as start:
      packed = start.read(2) == b"\x1f\x8b"
    # Lines end at \n alone: JSON text may hold U+2028 and the like.
    with (gzip.open if packed else open)(file, "rb") as lines:
      for number, line in enumerate(lines, 1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if text.strip():
          where = f"{file}:{number}"
          yield where, _object(text.rstrip("\r\n"), where)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{file}:{number}: not UTF-8 text: {error}. Save the file as UTF-8."
    ) from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{file}: broken gzip data after line {number}: {error}."
    ) from error


def _object(text: str, where: str) -> dict[str, Any]:
  try:
    fields = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{where}: not valid JSON at column {error.colno}: {error.msg}. A line"
      " must hold one whole JSON object."
    ) from error
  except (RecursionError, ValueError) as error:
    # Brackets too deep, or a number of thousands of digits.
    raise ValueError(f"{where}: not usable JSON: {error}.") from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{where}: a line must hold a JSON object, but this is {found(fields)}."
    )
  return fields
