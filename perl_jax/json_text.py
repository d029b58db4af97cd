"""Parses JSON that people write, and says where it is wrong.

RFC 8259 leaves open what a key means that stands twice in an object; Python
takes the last value, so that `{"label": 1, "label": 0}` is 0 without a word.
Here it is a fault.
"""

import json
import re
from pathlib import Path
from typing import Any

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]')


class Fault(ValueError):
  """What is wrong with a JSON text.

  Attributes:
    what: Description of the fault, without a full stop.
    line: Line of the text, from 1; None if it cannot be told.
  """

  def __init__(self, what: str, line: int | None = None):
    super().__init__(what if line is None else f"line {line}: {what}")
    self.what, self.line = what, line


class KeyTwice(Fault):
  """A key that stands twice in an object, so that its value is not clear."""


class _Twice(Exception):
  """What `_DECODER` raises, which knows neither the key nor the line."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    raise _Twice
  return fields


# Made once: `json.loads` makes a decoder with a hook at every call.
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(text: str | bytes) -> Any:
  """The value of a JSON text; `bytes` are UTF-8, with a mark or without.

  NaN and the infinities are read, as Python writes them.

  Raises:
    KeyTwice: It has a key twice in one object.
    Fault: It is not UTF-8 or not JSON, or nested too deeply.
  """
  if isinstance(text, bytes):
    try:
      text = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      line = text[: error.start].count(b"\n") + 1
      raise Fault(f"not UTF-8 text: {error}", line) from error
  try:
    return _DECODER.decode(text)
  except _Twice as error:
    key, line = _first_twice(text)
    raise KeyTwice(
      f"the key {key!r} stands twice in one object; keep one of the two", line
    ) from error
  except json.JSONDecodeError as error:
    raise Fault(
      f"not valid JSON at column {error.colno}: {error.msg}", error.lineno
    ) from error
  except (RecursionError, ValueError) as error:
    # Brackets too deep, or a number of thousands of digits.
    raise Fault(f"not usable JSON: {error}") from error


def read_object(path: str | Path, way_out: str = "") -> dict[str, Any]:
  """The JSON object in a file.

  Args:
    path: The file.
    way_out: A sentence that ends the message of an error.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: `parse` raises it, or the text is another value than an object;
      names the file and the line.
  """
  try:
    value = parse(Path(path).read_bytes())
  except Fault as error:
    where = path if error.line is None else f"{path}:{error.line}"
    raise ValueError(f"{where}: {error.what}. {way_out}".rstrip()) from error
  if not isinstance(value, dict):
    found = type(value).__name__
    raise ValueError(
      f"{path}: is {found}, not a JSON object. {way_out}".rstrip()
    )
  return value


def object_or_none(path: str | Path) -> dict[str, Any] | None:
  """The JSON object in a file, None where there is none or it is damaged.

  For a first look: whoever needs the object calls `read_object`, which says
  what is wrong.
  """
  try:
    return read_object(path)
  except (OSError, ValueError):
    return None


def _first_twice(text: str) -> tuple[str, int]:
  """The first key that stands twice in an object of a JSON text; its line."""
  open_: list[set[str] | None] = []  # keys of objects, None for lists
  is_key = False
  for token in _TOKEN.finditer(text):
    first = token[0][0]
    if first in "{[":
      open_.append(set() if first == "{" else None)
      is_key = first == "{"
    elif first in "}]":
      open_.pop()
      is_key = False
    elif first == ",":
      is_key = bool(open_) and open_[-1] is not None
    elif is_key and first == '"':
      key, is_key = json.loads(token[0]), False
      if key in open_[-1]:
        return key, text.count("\n", 0, token.start()) + 1
      open_[-1].add(key)
  raise AssertionError("no key stands twice")
