"""Builds the tokenizer of a GGUF file from the file's metadata.

The file has the vocabulary, the kinds of its tokens, the merges, the ids of
special tokens and the chat template; what text goes through before BPE is known
by a name (`gguf_pre_tokenizers`). `transformers` builds the same tokenizer, but
needs PyTorch to do so.
"""

import json
import os
import pathlib

from perl_jax.data.text.gguf_metadata import read_metadata
from perl_jax.data.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from perl_jax.data.text.hugging_face import import_transformers

SUFFIX = ".gguf"
# Files one of which makes a directory the home of a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Ids of tokens that end a response.
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

# Kinds of tokens (`gguf.TokenType`).
CONTROL, USER_DEFINED = 3, 4
# Names of special tokens in `transformers`, and their keys in the file.
_SPECIAL = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
_WAY_OUT = "Put the model's tokenizer.json and tokenizer_config.json beside it."


def tokenizer_of(file: str | os.PathLike) -> pathlib.Path:
  """Returns where the tokenizer of a GGUF file is: beside it, or in it."""
  file = pathlib.Path(file)
  beside = any((file.parent / name).is_file() for name in TOKENIZER_FILES)
  return file.parent if beside else file


def build_tokenizer(file: str | os.PathLike):
  """Builds a tokenizer from the metadata of a GGUF file.

  Returns:
    A `transformers.PreTrainedTokenizerFast`, and the ids of the tokens that end
    a response, without repetition.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is damaged, has no tokenizer, or one of a kind that is not
      known; names the file and the key.
  """
  source = _Source(file)
  model = source.get("tokenizer.ggml.model", str)
  builders = {"gpt2": _byte_level}
  if model not in builders:
    raise source.error(
      "tokenizer.ggml.model",
      f"is {model!r}, which is none of {', '.join(builders)}",
    )
  tokenizer, add_bos = builders[model](source)
  source.add_tokens(tokenizer)
  return source.wrap(tokenizer, add_bos), source.end_ids()


def write_tokenizer(
  file: str | os.PathLike, directory: str | os.PathLike
) -> None:
  """Writes the tokenizer of a GGUF file as a Hugging Face directory.

  `transformers` reads the same tokenizer from it, the chat template included;
  generation_config.json names the tokens that end a response.

  Raises:
    FileNotFoundError, ValueError: As `build_tokenizer`.
  """
  tokenizer, end_ids = build_tokenizer(file)
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save_pretrained(directory)
  # The name that `transformers` 4 knows too.
  path = directory / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config["tokenizer_class"] = "PreTrainedTokenizerFast"
  path.write_text(json.dumps(config, indent=2) + "\n")
  if end_ids:
    (directory / "generation_config.json").write_text(
      json.dumps({"eos_token_id": end_ids}) + "\n"
    )


class _Source:
  """The metadata of one file, and errors that name it.

  Attributes:
    tokens: Text of each token, by id.
    ids: Id of each token, by text.
    kinds: Kind of each token, by id.
  """

  def __init__(self, file: str | os.PathLike) -> None:
    self.file = pathlib.Path(file)
    self._metadata = read_metadata(self.file)
    self.tokens = self.get("tokenizer.ggml.tokens", list)
    self.ids = self._check_tokens()
    self.kinds = self.get("tokenizer.ggml.token_type", list, default=())
    if self.kinds and len(self.kinds) != len(self.tokens):
      raise self.error(
        "tokenizer.ggml.token_type",
        f"has {len(self.kinds)} entries for {len(self.tokens)} tokens",
      )

  def error(self, key: str, what: str) -> ValueError:
    return ValueError(f"{self.file}: {key} {what}. {_WAY_OUT}")

  def get(self, key: str, kind: type, default: object = None) -> object:
    """Returns the value of a key; an error without a default if it lacks."""
    value = self._metadata.get(key, default)
    if value is None:
      raise self.error(key, "is missing")
    if value is not default and not isinstance(value, kind):
      raise self.error(
        key, f"should be a {kind.__name__}, but is {str(value)[:40]!r}"
      )
    return value

  def special_id(self, name: str) -> int | None:
    """Returns the id that `tokenizer.ggml.NAME` gives, or None."""
    key = f"tokenizer.ggml.{name}"
    id_ = self.get(key, int, default=-1)
    if id_ >= len(self.tokens):
      raise self.error(
        key, f"is {id_}, but there are {len(self.tokens)} tokens"
      )
    return None if id_ == -1 else id_

  def end_ids(self) -> list[int]:
    ids = [self.special_id(name) for name in END_KEYS]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))

  def add_tokens(self, tokenizer) -> None:
    """Marks the tokens that are found in a text before it is cut."""
    from tokenizers import AddedToken

    named = {self.special_id(name) for name in _SPECIAL.values()}
    added = []
    for i, token in enumerate(self.tokens):
      kind = self.kinds[i] if self.kinds else None
      special = kind == CONTROL or i in named
      if special or kind == USER_DEFINED:
        added.append(AddedToken(token, special=special, normalized=False))
    tokenizer.add_tokens(added)

  def wrap(self, tokenizer, add_bos: bool):
    """Returns the tokenizer as one of `transformers`, with its template."""
    special = {}
    for name, key in _SPECIAL.items():
      id_ = self.special_id(key)
      if id_ is not None:
        special[name] = self.tokens[id_]
    return import_transformers().PreTrainedTokenizerFast(
      tokenizer_object=tokenizer,
      chat_template=self._chat_template(),
      add_bos_token=self.get("tokenizer.ggml.add_bos_token", bool, add_bos),
      add_eos_token=self.get("tokenizer.ggml.add_eos_token", bool, False),
      clean_up_tokenization_spaces=False,
      **special,
    )

  def _chat_template(self) -> str | None:
    """Returns the default chat template; others have names and are left."""
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.default"):
      template = self.get(key, str, default="")
      if template:
        return template
    return None

  def _check_tokens(self) -> dict[str, int]:
    key = "tokenizer.ggml.tokens"
    if not self.tokens:
      raise self.error(key, "is empty")
    for i, token in enumerate(self.tokens):
      if not isinstance(token, str):
        raise self.error(key, f"has {token!r} as token {i}, which is no text")
      if not token:  # As llama.cpp names them.
        self.tokens[i] = f"[EMPTY_{i}]"
    found: dict[str, int] = {}
    for i, token in enumerate(self.tokens):
      if found.setdefault(token, i) != i:
        raise self.error(
          key, f"has {token!r} twice, as token {found[token]} and token {i}"
        )
    return found


def _byte_level(source: _Source):
  """Byte-level BPE, as GPT-2 has it, and whether BOS is put before text."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  key = "tokenizer.ggml.pre"
  name = source.get(key, str)
  if name not in PRE_TOKENIZERS:
    raise source.error(
      key, f"is {name!r}, which is none of {', '.join(sorted(PRE_TOKENIZERS))}"
    )
  pre = PRE_TOKENIZERS[name]
  model = models.BPE(
    vocab=source.ids,
    merges=_merges(source),
    ignore_merges=pre.whole_words,
  )
  tokenizer = tokenizers.Tokenizer(model)
  if pre.normal_form:
    tokenizer.normalizer = getattr(normalizers, pre.normal_form)()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *(
        pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        for pattern in pre.patterns
      ),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, pre.add_bos


def _merges(source: _Source) -> list[tuple[str, str]]:
  key = "tokenizer.ggml.merges"
  merges = []
  for i, merge in enumerate(source.get(key, list)):
    cut = merge.find(" ", 1)
    left, right = merge[:cut], merge[cut + 1 :]
    if cut < 0 or not right:
      raise source.error(key, f"has {merge!r} as merge {i}, which is no pair")
    for part in (left, right, left + right):
      if part not in source.ids:
        raise source.error(
          key, f"has {merge!r} as merge {i}, but {part!r} is no token"
        )
    merges.append((left, right))
  return merges
