"""The library `transformers`, imported when it is needed, and its files."""

import os
import pathlib
import types
from typing import Any

from perl_jax import json_text
from perl_jax.data.text import unreadable

# A chat template in a file goes before one in tokenizer_config.json.
TEMPLATE = "chat_template.jinja"


def import_transformers() -> types.ModuleType:
  """Imports `transformers`; the only place in the package that does.

  It takes seconds, so it is imported by the first function that needs it. The
  environment variable keeps it from printing that there is no PyTorch.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def read_tokenizer(directory: pathlib.Path) -> Any:
  """Reads a tokenizer with `transformers`; runs no code from the directory.

  Raises:
    ValueError: There is none that can be read.
  """
  why = f"{directory} has no tokenizer that transformers can read: "
  missing = unreadable.missing_file(directory)
  if missing:
    raise ValueError(why + missing)
  try:
    return import_transformers().AutoTokenizer.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise ValueError(why + unreadable.reason(directory, error)) from error


def eos_ids(directory: pathlib.Path) -> list[int]:
  """Returns the ids at which `transformers` stops: one, several or none.

  Raises:
    ValueError: The file that says so is no JSON object.
  """
  for name in ("generation_config.json", "config.json"):
    path = directory / name
    if path.exists():
      eos = json_text.read_object(path).get("eos_token_id")
      listed = eos if isinstance(eos, list) else [eos]
      return [i for i in listed if i is not None]
  return []
