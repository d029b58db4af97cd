"""A GGUF file as a checkpoint: its model and its base."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from perl_jax import roles
from perl_jax.data.text import gguf_metadata
from perl_jax.interop import leaves
from perl_jax.interop.gguf import config as config_lib
from perl_jax.interop.gguf import names
from perl_jax.interop.gguf.reading import File
from perl_jax.interop.storage import Storage
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

# What is not a parameter: `config` has read it.
_IGNORED = {"rope_freqs.weight"}
# Values that are dequantised at a time.
_CHUNK = 2**24


def file_of(path: str | os.PathLike) -> Path | None:
  """The GGUF file that a path names: itself, or the only one in a directory.

  None if there is none, or if the directory is a Hugging Face checkpoint.

  Raises:
    ValueError: The directory has several, and nothing else to read.
  """
  path = Path(path)
  if path.suffix == gguf_metadata.SUFFIX:
    return path if path.is_file() else None
  if not path.is_dir() or (path / "config.json").is_file():
    return None
  found = sorted(path.glob(f"*{gguf_metadata.SUFFIX}"))
  if len(found) > 1:
    listed = ", ".join(file.name for file in found[:8])
    raise ValueError(
      f"{path} holds {len(found)} GGUF files: {listed}. Name one of them."
    )
  return found[0] if found else None


def load(
  file: str | os.PathLike, *, mesh: Mesh, storage: Storage
) -> roles.Role:
  """Reads a file as a role with a base alone.

  Args:
    file: The GGUF file.
    mesh: Mesh for the base.
    storage: Converts the base to the dtype it is kept in.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is damaged, or its model cannot be expressed here; names the
      file and the key or the tensors.
  """
  opened = File(file)
  config = config_lib.model_config(opened)
  shapes = leaves.base_shapes(config)
  sources = names.sources(config, config_lib.architecture(opened), shapes)
  _require_fit(opened, shapes, sources)
  held: dict[str, np.ndarray] = {}

  def read(path, bounds, dtype):
    if path not in held:  # whole: a block of a row may go to several devices
      held.clear()
      held[path] = _leaf(opened, sources[path], shapes[path], dtype)
    return held[path][tuple(slice(*b) for b in bounds)]

  def where(path, layer):
    return f"{opened.path}: {sources[path].names[layer]}"

  base = leaves.load(shapes, read, where, mesh=mesh, storage=storage)
  return roles.Role(roles.Backbone(config, LoraSpec()), {}, base)


def model_config(file: str | os.PathLike) -> ModelConfig:
  """The model of a file, without its weights; errors as of `load`."""
  return config_lib.model_config(File(file))


def _leaf(
  file: File, source: names.Source, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
  whole = np.empty(shape, dtype)
  for i, name in enumerate(source.names):
    into = whole[i] if source.stacked else whole
    stored = file.tensors[name].shape
    step = stored[0]
    if len(stored) > 1 and not source.heads:
      step = max(1, _CHUNK // stored[1])
    if step >= stored[0]:
      into[...] = source.from_file(file.read(name))
      continue
    for first in range(0, stored[0], step):
      last = min(first + step, stored[0])
      rows = source.from_file(file.rows(name, first, last))
      if source.transposed:
        into[:, first:last] = rows
      else:
        into[first:last] = rows
  return whole


def _require_fit(
  file: File,
  shapes: Mapping[str, tuple[int, ...]],
  sources: Mapping[str, names.Source],
) -> None:
  """Checks that the file has the tensors of its model, and no others."""
  wanted = {}
  for path, source in sources.items():
    wanted |= dict.fromkeys(source.names, source.tensor_shape(shapes[path]))
  found = {name: info.shape for name, info in file.tensors.items()}
  wrong = [
    f"{name} has shape {found[name]}, expected {shape}"
    for name, shape in wanted.items()
    if name in found and found[name] != shape
  ]
  wrong += [f"{name} is missing" for name in wanted.keys() - found.keys()]
  wrong += [
    f"{name} is unknown" for name in found.keys() - wanted.keys() - _IGNORED
  ]
  if wrong:
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    raise ValueError(
      f"{file.path}: the tensors are not those that its metadata describes:"
      f" {'; '.join(sorted(wrong)[:8])}{more}. Convert the model again, or give"
      " the Hugging Face checkpoint that it was made from as config.base."
    )
