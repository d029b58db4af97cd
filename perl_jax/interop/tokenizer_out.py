"""The tokenizer's files of an export: a token to pad with, and a template.

The files that name a pad token agree with each other: tokenizer_config.json,
special_tokens_map.json and tokenizer.json, if they are there.
"""

import json
import os
from pathlib import Path
from typing import Any

from perl_jax import files, json_text
from perl_jax.data.text import hugging_face
from perl_jax.data.text.tokenization import Tokenization

CONFIG = "tokenizer_config.json"
_MAP, _PIPELINE = "special_tokens_map.json", "tokenizer.json"


def pad_token(tokenization: Tokenization, *, reward: bool) -> tuple[int, str]:
  """Id and text of the token that an exported model is padded with.

  `...ForSequenceClassification` scores at the last token that is not padding,
  by its id: a reward model is padded with a token that ends no conversation. A
  policy keeps the pad token that it has.

  Raises:
    ValueError: Every token that could pad also ends a conversation.
  """
  found = tokenization.pads
  if reward and tokenization.unread is not None:
    return tokenization.unread  # of a reward model of others, as it was
  if not reward:
    own = [tokenization.own_pad] if tokenization.own_pad else []
    return [*own, *found, tokenization.stop][0]
  if not found:
    raise ValueError(
      f"{tokenization.name} has no special token but those that end a"
      " conversation, and padded with one of them transformers would score"
      " before the end. Set pad_token in its tokenizer_config.json to a token"
      " of its vocabulary that no text has, and export again."
    )
  return found[0]


def set_pad_token(directory: str | os.PathLike, id_: int, text: str) -> None:
  """Makes a token the pad token of the tokenizer in a directory.

  Args:
    directory: Holds the tokenizer's files.
    id_: Id of the token.
    text: Its text.
  """
  directory = Path(directory)
  path = directory / CONFIG
  settings = _read(path) | {"pad_token": text}
  known = settings.get("added_tokens_decoder", {})
  if str(id_) in known:
    known[str(id_)]["special"] = True
  files.write_json(path, settings)
  path = directory / _MAP
  if path.is_file():
    files.write_json(path, _read(path) | {"pad_token": text})
  path = directory / _PIPELINE
  if path.is_file():
    pipeline = _read(path)
    if _pad_in_pipeline(pipeline, id_, text):
      files.write_json(path, pipeline)


def _pad_in_pipeline(pipeline: dict[str, Any], id_: int, text: str) -> bool:
  """Makes a token pad in tokenizer.json; whether that changed anything."""
  before = json.dumps(pipeline)
  added = pipeline.setdefault("added_tokens", [])
  entry = next((token for token in added if token["id"] == id_), None)
  if entry is None:
    entry = {"id": id_, "content": text} | dict.fromkeys(
      ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    added.append(entry)
    added.sort(key=lambda token: token["id"])
  entry["special"] = True
  if pipeline.get("padding"):
    pipeline["padding"] |= {"pad_id": id_, "pad_token": text}
  return json.dumps(pipeline) != before


def keep_class(directory: str | os.PathLike, tokenizer: Any) -> None:
  """Sees to it that `transformers` reads the tokenizer as it was read before.

  Version 5 chooses the class by the config.json beside the tokenizer, which an
  adapter does not have, and some classes build a pipeline of their own.

  Args:
    directory: Holds the tokenizer's files; all of the export is written.
    tokenizer: The tokenizer of `transformers` that was trained with.

  Raises:
    ValueError: It is read as another tokenizer, whatever class is named.
  """
  directory = Path(directory)
  expected, path = _pipeline(tokenizer), directory / CONFIG
  if _pipeline(hugging_face.by_transformers(directory)) == expected:
    return
  if not (directory / _PIPELINE).is_file():  # a SentencePiece model alone
    tokenizer.backend_tokenizer.save(str(directory / _PIPELINE))
    if _pipeline(hugging_face.by_transformers(directory)) == expected:
      return
  name = type(tokenizer).__name__
  # Which is what the second is called in version 4.
  name = {"TokenizersBackend": "PreTrainedTokenizerFast"}.get(name, name)
  files.write_json(path, _read(path) | {"tokenizer_class": name})
  if _pipeline(hugging_face.by_transformers(directory)) != expected:
    raise ValueError(
      f"{path}: transformers does not read tokenizer.json as the tokenizer that"
      " was trained with, which it read with a config.json beside it. Save that"
      f" tokenizer with tokenizer_class={name!r}, and train with it."
    )


def _pipeline(tokenizer: Any) -> dict[str, Any]:
  """What makes tokens of a text."""
  parts = json.loads(tokenizer.backend_tokenizer.to_str())
  # No text is put before or behind a piece, said in either way.
  for name in ("continuing_subword_prefix", "end_of_word_suffix"):
    if parts["model"].get(name) == "":
      parts["model"][name] = None
  return {
    name: parts[name] for name in ("normalizer", "pre_tokenizer", "model")
  }


def set_template(directory: str | os.PathLike, template: str) -> None:
  """Makes a text the chat template of the tokenizer in a directory."""
  directory = Path(directory)
  files.write_text(directory / hugging_face.TEMPLATE, template)
  settings = _read(directory / CONFIG)
  if settings.pop("chat_template", None) is not None:
    files.write_json(directory / CONFIG, settings)


def _read(path: Path) -> dict[str, Any]:
  return json_text.read_object(path) if path.is_file() else {}
