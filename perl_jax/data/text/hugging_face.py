"""The library `transformers`, imported when it is needed, and its files."""

import os
import pathlib
import types
from typing import Any

from perl_jax import json_text
from perl_jax.data.text import unreadable

# A chat template in a file goes before one in tokenizer_config.json.
TEMPLATE = "chat_template.jinja"
# The folder of those with another name than "default".
TEMPLATES = "additional_chat_templates"
# Where older processors keep the template; tokenizers do not read it.
PROCESSOR = "chat_template.json"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


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

  A tokenizer without a chat template has that of its processor, if there is
  one.

  Raises:
    ValueError: There is none that can be read, or a file of it has a key twice.
  """
  why = f"{directory} has no tokenizer that transformers can read: "
  missing = unreadable.missing_file(directory)
  if missing:
    raise ValueError(why + missing)
  try:
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise ValueError(why + unreadable.reason(directory, error)) from error
  for name in _SETTINGS:
    if (directory / name).is_file():
      json_text.read_object(directory / name)
  if tokenizer.chat_template is None:
    tokenizer.chat_template = processor_template(directory)
  return tokenizer


def processor_template(directory: pathlib.Path) -> str | None:
  """Returns the chat template of chat_template.json, if there is no other.

  Raises:
    ValueError: A file that says so is no JSON object.
  """
  others = [directory / TEMPLATE, *(directory / TEMPLATES).glob("*.jinja")]
  path, settings = directory / PROCESSOR, directory / _SETTINGS[0]
  if not path.is_file() or any(other.is_file() for other in others):
    return None
  if settings.is_file() and json_text.read_object(settings).get(
    "chat_template"
  ):
    return None
  template = json_text.read_object(path).get("chat_template")
  return template if isinstance(template, str) else None


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
