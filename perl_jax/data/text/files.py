"""Reads a tokenizer from where it lies: a directory, or a GGUF file."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from perl_jax.data.text import (
  gguf_metadata,
  gguf_tokenizer,
  gguf_vocabulary,
  hugging_face,
)


def read(
  path: str | os.PathLike,
  template: pathlib.Path | None = None,
  model: pathlib.Path | None = None,
) -> tuple[Any, Sequence[int]]:
  """Reads a tokenizer of `transformers`, and the ids at which its model stops.

  Args:
    path: The directory of a tokenizer, or a GGUF file that has one in it.
    template: File of a chat template that takes the place of the tokenizer's.
    model: Directory of the model, where that is another one.

  Raises:
    FileNotFoundError: There is no such directory or file.
    ValueError: There is no tokenizer in it.
  """
  directory = pathlib.Path(path)
  if directory.suffix == gguf_metadata.SUFFIX:
    tokenizer, ids = gguf_tokenizer.build_tokenizer(path)
  elif directory.is_dir():
    tokenizer = hugging_face.read_tokenizer(directory, model)
    ids = hugging_face.eos_ids(directory)
  else:
    raise FileNotFoundError(
      f"No tokenizer directory {directory}. It should hold tokenizer.json and "
      "tokenizer_config.json, as `save_pretrained` writes them."
    )
  if template is not None:
    tokenizer.chat_template = template.read_text()
  return tokenizer, ids


def stop_ids(path: str | os.PathLike) -> Sequence[int]:
  """Ids at which a model stops, as the files of its tokenizer name them.

  Args:
    path: A directory, which may lack a tokenizer, or a GGUF file.
  """
  if pathlib.Path(path).suffix == gguf_metadata.SUFFIX:
    return gguf_vocabulary.Vocabulary(path).end_ids()
  return hugging_face.eos_ids(pathlib.Path(path))
