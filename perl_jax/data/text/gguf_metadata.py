"""Reads the head of a GGUF file: key-value pairs and where tensors are.

`gguf.GGUFReader` makes an array for every element of a list: 3 seconds for a
vocabulary of 49,000 tokens, 20 for one of 256,000. Here a list of strings is
one pass over the mapped file.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import os
import pathlib
import struct
from typing import NamedTuple

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Types of values: letters of `struct`, or these two.
_NUMBERS = {
  0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
  10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_AXES = 4


class Head(NamedTuple):
  """What a GGUF file says of itself.

  Attributes:
    metadata: Numbers, booleans, strings and lists, by key.
    types: Type of each value by key, a number of `gguf.GGUFValueType`; of a
      list, that of its items behind it.
    tensors: (sizes, type, offset) by name. Sizes are as in the file, the length
      of a row first; the offset counts from `data_start`.
    data_start: Position of the first byte of the tensors.
    order: "<" if numbers are little-endian, ">" if they are not.
  """

  metadata: dict[str, object]
  types: dict[str, tuple[int, ...]]
  tensors: dict[str, tuple[tuple[int, ...], int, int]]
  data_start: int
  order: str


def read_metadata(path: str | os.PathLike) -> dict[str, object]:
  """Returns the metadata of a GGUF file; see `read_head`."""
  return read_head(path).metadata


def read_head(path: str | os.PathLike) -> Head:
  """Reads all of a GGUF file but its tensors.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is no GGUF file of version 2 or 3, or ends too early; names
      the file and the key.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"No GGUF file {path}.")
  with path.open("rb") as file:
    if file.read(4) != MAGIC:
      raise ValueError(
        f"{path} does not begin with {MAGIC.decode()}, so it is no GGUF file. "
        "Download it again, or name the directory of a Hugging Face checkpoint."
      )
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      return _Head(data, path).read()


class _Head:
  """A position in the head of a file, and how its numbers are stored."""

  def __init__(self, data: mmap.mmap, path: pathlib.Path) -> None:
    self._data = data
    self._path = path
    self._at = len(MAGIC)
    self._order = "<"
    self._key = "GGUF.version"

  def read(self) -> Head:
    found: dict[str, object] = {}
    types: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
    try:
      (version,) = self._numbers("I")
      if version & 0xFFFF == 0:  # Written on a big-endian machine.
        self._order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
      if version not in VERSIONS:
        raise ValueError(
          f"{self._path} is a GGUF file of version {version}; versions "
          f"{' and '.join(map(str, VERSIONS))} can be read. Convert the model "
          "again with a llama.cpp of today."
        )
      self._key = "GGUF.kv_count"
      num_tensors, count = self._numbers("Q", 2)
      for _ in range(count):
        self._key = f"the key after {self._key}"
        self._key = self._string()
        if self._key in found:
          raise ValueError(f"{self._path} has two values for {self._key}.")
        (kind,) = self._numbers("I")
        items = self._peek("I") if kind == _ARRAY else ()
        types[self._key] = (kind, *items)
        found[self._key] = self._value(kind)
      for _ in range(num_tensors):
        self._key = f"the tensor after {self._key}"
        self._key = self._string()
        if self._key in tensors:
          raise ValueError(f"{self._path} has two tensors {self._key}.")
        tensors[self._key] = self._tensor()
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
      raise ValueError(
        f"{self._path} is cut off or damaged at {self._key}: {error}. Download "
        "it again."
      ) from error
    start = self._aligned(found)
    return Head(found, types, tensors, start, self._order)

  def _tensor(self) -> tuple[tuple[int, ...], int, int]:
    (axes,) = self._numbers("I")
    if not 1 <= axes <= _MOST_AXES:
      raise struct.error(f"a tensor of {axes} axes is announced there")
    sizes = self._numbers("Q", axes)
    return sizes, *self._numbers("I"), *self._numbers("Q")

  def _aligned(self, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
      raise ValueError(
        f"{self._path}: general.alignment is {alignment!r}. Download the file "
        "again."
      )
    return -(-self._at // alignment) * alignment

  def _numbers(self, letter: str, count: int = 1) -> tuple:
    values = self._peek(letter, count)
    self._at += struct.calcsize(f"{self._order}{count}{letter}")
    return values

  def _peek(self, letter: str, count: int = 1) -> tuple:
    form = f"{self._order}{count}{letter}"
    return struct.unpack_from(form, self._data, self._at)

  def _string(self) -> str:
    (length,) = self._numbers("Q")
    return str(self._slice(length), "utf-8")

  def _slice(self, length: int) -> bytes:
    end = self._at + length
    if end > len(self._data):
      raise struct.error(f"{length} bytes are announced there")
    found = self._data[self._at : end]
    self._at = end
    return found

  def _value(self, kind: int) -> object:
    if kind in _NUMBERS:
      return self._numbers(_NUMBERS[kind])[0]
    if kind == _STRING:
      return self._string()
    if kind != _ARRAY:
      raise ValueError(
        f"{self._path}: {self._key} has a value of the unknown type {kind}. "
        "Download the file again."
      )
    kind, count = self._numbers("I")[0], self._numbers("Q")[0]
    if count > len(self._data):  # Each element takes a byte at least.
      raise struct.error(f"{count} elements are announced there")
    if kind in _NUMBERS:
      return list(self._numbers(_NUMBERS[kind], count))
    return [self._value(kind) for _ in range(count)]
