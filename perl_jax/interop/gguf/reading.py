"""Reads the head of a GGUF file at once, and its tensors when asked.

Values of a quantised tensor are computed by the `gguf` library, some rows at a
time: the file is mapped, and the host holds what it was asked for.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from perl_jax.data.text import gguf_metadata
from perl_jax.interop.gguf.dependency import import_gguf

_AGAIN = "Download it again."


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor is in a file, and how it is stored.

  Attributes:
    shape: Rows first, as in NumPy.
    kind: Number of a `gguf.GGMLQuantizationType`.
    start: Position of its first byte in the file.
  """

  shape: tuple[int, ...]
  kind: int
  start: int


class File:
  """A GGUF file.

  Attributes:
    path: The file.
    metadata: Values by key.
    types: Types by key; see `gguf_metadata.Head`.
    tensors: `TensorInfo` by name.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is damaged, a part of a model, or no language model, with the
      file and the key or tensor; or the package `gguf` is not installed.
  """

  def __init__(self, path: str | os.PathLike) -> None:
    self.path = Path(path)
    self._gguf = import_gguf()
    head = gguf_metadata.read_head(path)
    self.metadata, self.types = head.metadata, head.types
    self._require_model(head.order)
    self.tensors = {
      name: TensorInfo(tuple(reversed(sizes)), kind, head.data_start + offset)
      for name, (sizes, kind, offset) in head.tensors.items()
    }
    self._data = np.memmap(self.path, np.uint8, "r")
    for name, info in self.tensors.items():
      self._require_whole(name, info)

  def get(self, key: str, kinds: type | tuple[type, ...], default: Any = None):
    """A value of the metadata, of a type that it has to have.

    Raises:
      ValueError: It has another type, or it is missing and there is no default.
    """
    found = self.metadata.get(key, default)
    if found is None:
      raise self.error(key, "is missing")
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(found, kinds) or (
      isinstance(found, bool) and bool not in kinds
    ):
      expected = " or ".join(kind.__name__ for kind in kinds)
      raise self.error(key, f"is {found!r}, expected {expected}")
    return found

  def error(self, key: str, what: str) -> ValueError:
    """An error about a key or a tensor of this file."""
    return ValueError(
      f"{self.path}: {key} {what}. Convert the model again with llama.cpp's"
      " convert_hf_to_gguf.py, or give the Hugging Face checkpoint that it was"
      " made from as config.base."
    )

  def rows(self, name: str, first: int, last: int) -> np.ndarray:
    """Rows [first, last) of a matrix, in float32."""
    info = self.tensors[name]
    size = self._bytes(info.kind, info.shape[1:])
    begin = info.start + first * size
    stored = self._data[begin : begin + (last - first) * size]
    return self._values(info.kind, stored.reshape(last - first, size))

  def read(self, name: str) -> np.ndarray:
    """A whole tensor in float32."""
    info = self.tensors[name]
    size = self._bytes(info.kind, info.shape)
    stored = self._data[info.start : info.start + size]
    return self._values(info.kind, stored).reshape(info.shape)

  def _values(self, kind: int, stored: np.ndarray) -> np.ndarray:
    # A copy: bytes of a file need not lie where float32 has to.
    return self._gguf.quants.dequantize(np.array(stored), kind)

  def _bytes(self, kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of an array whose rows are whole blocks."""
    block, size = self._gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size

  def _require_model(self, order: str) -> None:
    if order != "<":
      raise ValueError(
        f"{self.path} was written for a big-endian machine; weights are read"
        " little-endian. Convert it with `gguf-convert-endian`."
      )
    kind = self.metadata.get("general.type", "model")
    if kind != "model":
      raise ValueError(
        f"{self.path}: general.type={kind!r} is no language model of its own."
        " Give the file of the model (general.type='model')."
      )
    parts = self.metadata.get("split.count", 0)
    if parts not in (0, 1):
      raise ValueError(
        f"{self.path}: split.count={parts!r}: it is a part of a model. Join the"
        " parts: `llama-gguf-split --merge FIRST OUT`."
      )

  def _require_whole(self, name: str, info: TensorInfo) -> None:
    """Checks that a tensor can be read, and lies within the file."""
    quantized = self._gguf.GGMLQuantizationType
    try:
      kind = quantized(info.kind)
    except ValueError:
      raise ValueError(
        f"{self.path}: {name} is stored in type {info.kind}, which the"
        " installed gguf does not know. Install a newer one."
      ) from None
    plain = kind in (quantized.F32, quantized.F16, quantized.BF16)
    if not plain and kind not in self._gguf.quants._type_traits:
      raise ValueError(
        f"{self.path}: {name} is stored as {kind.name}, which the gguf library"
        " cannot convert to numbers. Give a file in F16, Q8_0 or another type"
        " of llama.cpp's."
      )
    block, _ = self._gguf.GGML_QUANT_SIZES[kind]
    if info.shape[-1] % block:
      raise ValueError(
        f"{self.path}: {name} has rows of {info.shape[-1]} values, no multiple"
        f" of the {block} of {kind.name}. {_AGAIN}"
      )
    end = info.start + self._bytes(info.kind, info.shape)
    if end > self._data.size:
      raise ValueError(
        f"{self.path} is cut off: {name} ends at byte {end}, the file has"
        f" {self._data.size}. {_AGAIN}"
      )
