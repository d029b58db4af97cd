"""The library `transformers`, imported when it is needed, and its files."""

import os
import pathlib
import types
from typing import Any

from absl import logging

from perl_jax import json_text
from perl_jax.data.text import unreadable

# A chat template in a file goes before one in tokenizer_config.json.
TEMPLATE = "chat_template.jinja"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
# The folder of those with another name than "default".
TEMPLATES = "additional_chat_templates"
# Where older processors keep the template; tokenizers do not read it.
PROCESSOR = "chat_template.json"
# Texts whose tokens show whether a SentencePiece model was understood.
_PLAIN = ("hello there", "12 mochas, please.", "a  b", "x\ny")


def import_transformers() -> types.ModuleType:
  """Imports `transformers`; the only place in the package that does.

  It takes seconds, so it is imported by the first function that needs it. The
  environment variable keeps it from printing that there is no PyTorch.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def read_tokenizer(
  directory: pathlib.Path, model: pathlib.Path | None = None
) -> Any:
  """Reads a tokenizer with `transformers`; runs no code from the directory.

  A tokenizer without a chat template has that of its processor, if there is
  one.

  Args:
    directory: Holds the tokenizer's files.
    model: Directory of the model that it is for, where that is another one, as
      of an adapter's base. The config.json there says which class reads the
      files, by which their tokens may differ.

  Raises:
    ValueError: There is none that can be read; or a file of it has a key twice,
      or a special token that is empty.
  """
  why = f"{directory} has no tokenizer that transformers can read: "
  missing = unreadable.missing_file(directory)
  if missing:
    raise ValueError(why + missing)
  try:
    tokenizer = by_transformers(directory, model)
    tokenizer("a", add_special_tokens=False)  # which some fail at
    tokenizer = _as_sentencepiece(tokenizer, directory)
  except Exception as error:
    raise ValueError(why + unreadable.reason(directory, error)) from error
  empty = unreadable.empty_token(directory)
  if empty:
    raise ValueError(why + empty)
  if tokenizer.chat_template is None:
    tokenizer.chat_template = processor_template(directory)
  return tokenizer


def by_transformers(
  directory: pathlib.Path, model: pathlib.Path | None = None
) -> Any:
  """The tokenizer as `transformers` reads it, or what it raises."""
  transformers, local = import_transformers(), dict(_LOCAL)
  if model is not None and (model / "config.json").is_file():
    local["config"] = transformers.AutoConfig.from_pretrained(
      str(model), **_LOCAL
    )
  return transformers.AutoTokenizer.from_pretrained(str(directory), **local)


def _as_sentencepiece(tokenizer: Any, directory: pathlib.Path) -> Any:
  """The tokenizer of a SentencePiece model that lies alone, as that cuts.

  `transformers` reads it by the model's family, and for some (Mistral) without
  the space that SentencePiece puts before a text; the class of Llama has it.
  """
  path = unreadable.pieces_alone(directory)
  if path is None or not unreadable.is_sentencepiece(path):
    return tokenizer
  import sentencepiece  # without it `transformers` has not read it

  model = sentencepiece.SentencePieceProcessor(model_file=str(path))

  def differs(found: Any) -> list[str]:
    cuts = {text: model.encode(text) for text in _PLAIN}
    return [
      text
      for text, ids in cuts.items()
      if model.unk_id() not in ids
      and found.encode(text, add_special_tokens=False) != ids
    ]

  if not differs(tokenizer):
    return tokenizer
  other = import_transformers().LlamaTokenizer.from_pretrained(
    str(directory), **_LOCAL
  )
  if not differs(other):
    logging.info("%s: read as the tokenizer of Llama, which cuts so.", path)
    return other
  text = differs(tokenizer)[0]
  logging.warning(
    "%s: transformers cuts %r into %s, SentencePiece into %s. Give the"
    " directory a tokenizer.json of the model, if there is one.", path, text,
    tokenizer.tokenize(text), model.encode(text, out_type=str),
  )  # fmt: skip
  return tokenizer


def processor_template(directory: pathlib.Path) -> str | None:
  """Returns the chat template of chat_template.json, if there is no other.

  Raises:
    ValueError: A file that says so is no JSON object.
  """
  others = [directory / TEMPLATE, *(directory / TEMPLATES).glob("*.jinja")]
  path, settings = directory / PROCESSOR, directory / unreadable.SETTINGS
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
    ValueError: The file that says so is no JSON object, or says something else
      than ids.
  """
  for name in ("generation_config.json", "config.json"):
    path = directory / name
    if path.exists():
      fields = json_text.read_object(path)
      text = fields.get("text_config")  # of a model with vision
      inner = text.get("eos_token_id") if isinstance(text, dict) else None
      eos = fields.get("eos_token_id", inner)
      listed = eos if isinstance(eos, list) else [eos]
      listed = [i for i in listed if i is not None]
      if not all(
        isinstance(i, int) and not isinstance(i, bool) for i in listed
      ):
        raise ValueError(
          f"{path}: eos_token_id={eos!r} is neither the id of a token nor a"
          " list of ids. Write the number, as tokenizer.json has it."
        )
      return [i for i in listed if i >= 0]  # some write none as -1
  return []
