"""What the metadata of a GGUF file says of its tokens, checked.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import pathlib

from perl_jax.data.text.gguf_metadata import read_metadata

# Kinds of tokens (`gguf.TokenType`).
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
# Names of special tokens in `transformers`, and their keys in the file.
SPECIAL = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
# Ids of tokens that end a response.
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# llama.cpp's -1 as the unsigned number that ids are stored as.
_NO_TOKEN = 0xFFFFFFFF


class Vocabulary:
  """The tokens of one file.

  Attributes:
    file: The file, which errors name.
    architecture: Architecture of the model, as llama.cpp names it.
    tokens: Text of each token, by id.
    ids: Id of each token, by text.
  """

  def __init__(self, file: str | os.PathLike) -> None:
    self.file = pathlib.Path(file)
    self._metadata = read_metadata(self.file)
    self.architecture = self.get("general.architecture", str, "")
    self.tokens: list[str] = self.get("tokenizer.ggml.tokens", list)
    self.ids = self._check_tokens()
    self._kinds = self.numbers("token_type", ())

  def error(self, key: str, what: str) -> ValueError:
    """An error about a key, with the way out."""
    return ValueError(
      f"{self.file}: {key} {what}. Put the model's tokenizer.json and "
      "tokenizer_config.json beside the file; they are used instead."
    )

  def get(self, key: str, kind: type, default: object = None) -> object:
    """Returns the value of a key.

    Args:
      key: The key.
      kind: The type that its value should have.
      default: Value if the file has none; None if it must have one.

    Raises:
      ValueError: It has none, or one of another type.
    """
    value = self._metadata.get(key, default)
    if value is None:
      raise self.error(key, "is missing")
    if value is not default and type(value) is not kind:
      raise self.error(
        key, f"should be a {kind.__name__}, but is {str(value)[:40]!r}"
      )
    return value

  def numbers(self, name: str, default: object = None) -> list[float]:
    """Returns the list `tokenizer.ggml.NAME`: a number for each token."""
    key = f"tokenizer.ggml.{name}"
    values = self.get(key, list, default)
    if values is not default and len(values) != len(self.tokens):
      raise self.error(
        key, f"has {len(values)} entries for {len(self.tokens)} tokens"
      )
    return values

  def kind(self, id_: int) -> int | None:
    """Returns the kind of a token; None if the file does not say."""
    return self._kinds[id_] if self._kinds else None

  def special_id(self, name: str) -> int | None:
    """Returns the id that `tokenizer.ggml.NAME` gives, or None."""
    key = f"tokenizer.ggml.{name}"
    id_ = self.get(key, int, _NO_TOKEN)
    if id_ == _NO_TOKEN:
      return None
    if not 0 <= id_ < len(self.tokens):
      raise self.error(
        key, f"is {id_}, but there are {len(self.tokens)} tokens"
      )
    return id_

  def special_tokens(self) -> dict[str, str]:
    """Returns the special tokens that have a name in `transformers`."""
    ids = {name: self.special_id(key) for name, key in SPECIAL.items()}
    return {
      name: self.tokens[id_] for name, id_ in ids.items() if id_ is not None
    }

  def adds(self, name: str, default: bool) -> bool:
    """Returns whether `name`, "bos" or "eos", is put around a plain text."""
    key = f"tokenizer.ggml.add_{name}_token"
    said = self.get(key, bool, False)
    if said and self.special_id(f"{name}_token_id") is None:
      raise self.error(key, f"is true, but there is no {name}_token_id")
    return self.get(key, bool, default)

  def end_ids(self) -> list[int]:
    """Returns the ids of the tokens that end a response."""
    ids = [self.special_id(key) for key in _END_KEYS]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))

  def chat_template(self) -> str | None:
    """Returns the default chat template; those with names are left."""
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.default"):
      template = self.get(key, str, "")
      if template:
        return template
    return None

  def merges(self) -> list[tuple[str, str]] | None:
    """Returns the pairs of tokens that become one, the first ones first.

    None if the file has none.
    """
    key = "tokenizer.ggml.merges"
    pairs = []
    lines = self.get(key, list, ())
    if any(type(line) is not str for line in lines):
      raise self.error(key, f"should hold strings, but has {lines[0]!r}")
    for i, merge in enumerate(lines):
      cut = merge.find(" ", 1)
      left, right = merge[:cut], merge[cut + 1 :]
      if cut < 0 or not right:
        raise self.error(key, f"has {merge!r} as merge {i}, which is no pair")
      for part in (left, right, left + right):
        if part not in self.ids:
          raise self.error(
            key, f"has {merge!r} as merge {i}, but {part!r} is no token"
          )
      pairs.append((left, right))
    return None if lines == () else pairs

  def _check_tokens(self) -> dict[str, int]:
    key = "tokenizer.ggml.tokens"
    if not self.tokens:
      raise self.error(key, "is empty")
    ids: dict[str, int] = {}
    for i, token in enumerate(self.tokens):
      if not isinstance(token, str):
        raise self.error(key, f"has {token!r} as token {i}, which is no text")
      if not token:  # As llama.cpp names them.
        token = self.tokens[i] = f"[EMPTY_{i}]"
      if ids.setdefault(token, i) != i:
        raise self.error(
          key, f"has {token!r} twice, as token {ids[token]} and token {i}"
        )
    return ids
