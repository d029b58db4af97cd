"""Builds the tokenizer of a GGUF file from the file's metadata.

The file has the vocabulary, the kinds of its tokens, the merges or scores, the
ids of special tokens and the chat template. What text goes through before BPE
is known by a name (`gguf_pre_tokenizers`) or follows from the model. The result
is the one of `transformers`, which needs PyTorch to read such a file.
"""

import json
import os
import pathlib

from perl_jax.data.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from perl_jax.data.text.gguf_vocabulary import (
  BYTE,
  CONTROL,
  SPECIAL,
  UNKNOWN,
  USER_DEFINED,
  Vocabulary,
)
from perl_jax.data.text.hugging_face import import_transformers

# Files one of which makes a directory the home of a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_GEMMA = ("gemma", "gemma2", "gemma3")
_SPACE = "\u2581"  # what SentencePiece writes for a space


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
  vocabulary = Vocabulary(file)
  key = "tokenizer.ggml.model"
  model = vocabulary.get(key, str)
  builders = {"gpt2": _byte_level, "llama": _sentence_piece}
  if model not in builders:
    raise vocabulary.error(
      key, f"is {model!r}, which is none of {', '.join(builders)}"
    )
  tokenizer, add_bos = builders[model](vocabulary)
  wrapped = import_transformers().PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    chat_template=vocabulary.chat_template(),
    add_bos_token=vocabulary.adds("bos", add_bos),
    add_eos_token=vocabulary.adds("eos", False),
    clean_up_tokenization_spaces=False,
    **vocabulary.special_tokens(),
  )
  return wrapped, vocabulary.end_ids()


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


def _byte_level(vocabulary: Vocabulary):
  """BPE of bytes, as GPT-2 has it; and whether BOS is put before a text."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  key = "tokenizer.ggml.pre"
  name = vocabulary.get(key, str)
  if name not in PRE_TOKENIZERS:
    raise vocabulary.error(
      key, f"is {name!r}, which is none of {', '.join(sorted(PRE_TOKENIZERS))}"
    )
  pre = PRE_TOKENIZERS[name]
  merges = vocabulary.merges()
  if merges is None:
    raise vocabulary.error("tokenizer.ggml.merges", "is missing")
  model = models.BPE(
    vocab=vocabulary.ids, merges=merges, ignore_merges=pre.whole_words
  )
  tokenizer = tokenizers.Tokenizer(model)
  if pre.normal_form:
    tokenizer.normalizer = getattr(normalizers, pre.normal_form)()
  splits = [
    pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    for pattern in pre.patterns
  ]
  bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
  tokenizer.decoder = decoders.ByteLevel()
  _add_tokens(tokenizer, vocabulary)
  return tokenizer, pre.add_bos


def _sentence_piece(vocabulary: Vocabulary):
  """BPE of characters, as SentencePiece has it for Llama, Mistral and Gemma.

  Returns:
    The tokenizer, and whether BOS is put before a text.
  """
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  gemma = vocabulary.architecture in _GEMMA
  ids = {_piece(t) if gemma else t: i for t, i in vocabulary.ids.items()}
  prefix = vocabulary.get("tokenizer.ggml.add_space_prefix", bool, not gemma)
  model = models.BPE(
    vocab=ids,
    merges=vocabulary.merges() or _merges_of(vocabulary, ids, gemma),
    unk_token=vocabulary.special_tokens().get("unk_token"),
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer = tokenizers.Tokenizer(model)
  decoder = [
    decoders.Replace(_SPACE, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if gemma:
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme="first" if prefix else "never", split=False
    )
    if prefix:
      decoder.append(decoders.Strip(" ", left=1))
  tokenizer.decoder = decoders.Sequence(decoder)
  _add_tokens(tokenizer, vocabulary)
  return tokenizer, True


def _piece(token: str) -> str:
  """Returns a run of spaces as SentencePiece spells it."""
  return token if token.strip(" ") else _SPACE * len(token)


def _merges_of(
  vocabulary: Vocabulary, ids: dict[str, int], in_order: bool
) -> list[tuple[str, str]]:
  """Returns the merges of a vocabulary that has scores in their place.

  SentencePiece joins the two neighbours whose union is the token of the highest
  score. So every way to cut a token into two tokens is a merge, and the score
  of the token is its rank.

  Args:
    vocabulary: The vocabulary.
    ids: Its tokens as SentencePiece spells them.
    in_order: Whether the ids rank the tokens, as those of Gemma do: first those
      that the user defined (white space and tags), the longest of them first,
      then the others by id.
  """
  if in_order:
    first = (vocabulary.kind(i) == USER_DEFINED for i in range(len(ids)))
    scores = [1 if defined else -i for i, defined in enumerate(first)]
  else:
    scores = vocabulary.numbers("scores")
  # Text never becomes one of the others, whatever it spells.
  ids = {
    token: id_
    for token, id_ in ids.items()
    if vocabulary.kind(id_) not in (UNKNOWN, CONTROL, BYTE)
  }
  merges = []
  for token, id_ in ids.items():
    pairs = [
      (left, right)
      for i in range(1, len(token))
      if (left := token[:i]) in ids and (right := token[i:]) in ids
    ]
    pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    merges += [(-scores[id_], -len(a), -len(b), a, b) for a, b in pairs]
  merges.sort(key=lambda merge: merge[:3])
  return [(a, b) for *_, a, b in merges]


def _add_tokens(tokenizer, vocabulary: Vocabulary) -> None:
  """Marks the tokens that are found in a text before anything else."""
  from tokenizers import AddedToken

  known = tokenizer.get_vocab(with_added_tokens=False)
  named = {vocabulary.special_id(key) for key in SPECIAL.values()}
  added = []
  for i, token in enumerate(vocabulary.tokens):
    special = vocabulary.kind(i) == CONTROL or i in named
    marked = special or vocabulary.kind(i) == USER_DEFINED
    if marked and token in known:  # Gemma's spaces are spelled otherwise.
      added.append(AddedToken(token, special=special, normalized=False))
  tokenizer.add_tokens(added)
