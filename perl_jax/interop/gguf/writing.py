"""Writes a GGUF file tensor by tensor: the host holds one of them at a time."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perl_jax import disk
from perl_jax.interop.gguf.dependency import import_gguf


@dataclasses.dataclass(frozen=True)
class Field:
  """A key of the metadata.

  Attributes:
    key: Its name.
    value: A scalar, a string, or a list of either.
    kind: A `gguf.GGUFValueType`.
    of: Type of the items where `kind` is ARRAY, else None.
  """

  key: str
  value: Any
  kind: int
  of: int | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that is made when its turn comes.

  Attributes:
    name: Its name in the file.
    shape: Rows first, as in NumPy; the file has the sizes in reverse.
    kind: How it is stored, a `gguf.GGMLQuantizationType`.
    make: Returns its values, float32.
  """

  name: str
  shape: tuple[int, ...]
  kind: int
  make: Callable[[], np.ndarray]


def write(
  path: str | os.PathLike,
  architecture: str,
  fields: Iterable[Field],
  tensors: Sequence[Tensor],
) -> None:
  """Writes a file.

  Args:
    path: The file; one that exists is replaced.
    architecture: `general.architecture`, as llama.cpp names it.
    fields: The other keys, in their order.
    tensors: The tensors, in their order.

  Raises:
    ValueError: A value does not fit into the type it is stored in.
  """
  gguf = import_gguf()
  writer = gguf.GGUFWriter(path, architecture)
  try:
    for field in fields:
      if field.key == gguf.Keys.General.ALIGNMENT:
        writer.add_custom_alignment(field.value)
      else:
        writer.add_key_value(field.key, field.value, field.kind, field.of)
    needed = 0
    for tensor in tensors:
      shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
      size = int(np.prod(shape, dtype=np.int64))
      writer.add_tensor_info(
        tensor.name, shape, np.dtype(np.uint8), size, tensor.kind
      )
      needed += size
    disk.require_room(Path(path).name, Path(path).parent, needed)
    with disk.writing(Path(path).name, Path(path).parent, needed):
      writer.write_header_to_file()
      writer.write_kv_data_to_file()
      writer.write_ti_data_to_file()
      for tensor in tensors:
        writer.write_tensor_data(_stored(tensor))
  finally:
    writer.close()


def _stored(tensor: Tensor) -> np.ndarray:
  """The bytes of a tensor as the file holds them."""
  gguf = import_gguf()
  values = tensor.make()
  if tuple(values.shape) != tensor.shape:
    raise ValueError(
      f"{tensor.name} has shape {values.shape}, expected {tensor.shape}."
    )
  # An overflow is reported below, by name.
  with np.errstate(over="ignore", invalid="ignore"):
    stored = gguf.quants.quantize(
      np.ascontiguousarray(values, np.float32), tensor.kind
    )
  if stored.dtype != np.uint8 and not np.isfinite(stored).all():
    raise ValueError(
      f"{tensor.name} has values up to {np.abs(values).max():.4g}, which"
      f" {gguf.GGMLQuantizationType(tensor.kind).name} does not hold."
    )
  return stored
