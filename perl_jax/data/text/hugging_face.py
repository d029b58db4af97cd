"""The library `transformers`, imported when it is needed."""

import os
import pathlib
import types
from typing import Any


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
  try:
    return import_transformers().AutoTokenizer.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise ValueError(
      f"{directory} has no tokenizer that transformers can read: {error}"
    ) from error
