"""Checkpoints of others, whatever their format: what `config.base` may name.

A Hugging Face directory (`hf_checkpoint`), a GGUF file, or a directory with one
GGUF file in it.
"""

import os
from pathlib import Path

from jax.sharding import Mesh

from perl_jax import roles
from perl_jax.data.text import gguf_metadata, gguf_tokenizer
from perl_jax.interop import hf_checkpoint
from perl_jax.interop.gguf import checkpoint as gguf_checkpoint
from perl_jax.interop.storage import Storage
from perl_jax.models.config import ModelConfig

HUGGING_FACE, GGUF = "huggingface", "gguf"
# Formats of a checkpoint, as `Start.source` has them.
KINDS = (HUGGING_FACE, GGUF)


def kind_of(path: str | os.PathLike) -> str | None:
  """The format of a checkpoint, one of `KINDS`; None if it looks like none.

  Raises:
    ValueError: A directory has several GGUF files and nothing else, or a file
      is not named as one.
  """
  if hf_checkpoint.is_checkpoint(path):
    return HUGGING_FACE
  if Path(path).suffix == gguf_metadata.SUFFIX:
    return GGUF  # if it is not there, reading it says so
  if Path(path).is_file():
    raise ValueError(
      f"{path} is a file whose name does not end in {gguf_metadata.SUFFIX}. A"
      " model is a GGUF file or a directory. If it is a GGUF file, give it such"
      f" a name: ln -s {path} NAME{gguf_metadata.SUFFIX}"
    )
  return GGUF if gguf_checkpoint.file_of(path) is not None else None


def place_of(path: str | os.PathLike) -> Path:
  """The directory or the GGUF file that a path names, absolute."""
  return (gguf_checkpoint.file_of(path) or Path(path)).absolute()


def load(
  path: str | os.PathLike, *, mesh: Mesh, storage: Storage
) -> roles.Role:
  """Reads a checkpoint as a role without an adapter.

  Args:
    path: The directory or the file.
    mesh: Mesh for the base.
    storage: Converts the base to the dtype it is kept in.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: The architecture, a field or the weights cannot be used.
  """
  place = place_of(path)
  if place.suffix == gguf_metadata.SUFFIX:
    return gguf_checkpoint.load(place, mesh=mesh, storage=storage)
  return hf_checkpoint.load(place, mesh=mesh, storage=storage)


def model_config(path: str | os.PathLike) -> ModelConfig:
  """The model of a checkpoint, without its weights; errors as of `load`."""
  place = place_of(path)
  if place.suffix == gguf_metadata.SUFFIX:
    return gguf_checkpoint.model_config(place)
  return hf_checkpoint.model_config(place)


def pad_id(path: str | os.PathLike) -> int | None:
  """The token that a reward model of these files takes for padding, or None."""
  if kind_of(path) != HUGGING_FACE:
    return None
  return hf_checkpoint.pad_id(path)


def tokenizer_of(path: str | os.PathLike) -> Path:
  """Where the tokenizer is: the directory of the checkpoint, or a GGUF file.

  The tokenizer of a GGUF file is the one beside it, if there is one.
  """
  place = place_of(path)
  return gguf_tokenizer.tokenizer_of(place) if place.is_file() else place
