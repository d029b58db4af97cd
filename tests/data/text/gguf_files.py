"""GGUF files that hold a tokenizer, written by `gguf`."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

Kind = gguf.TokenType
ENDOFTEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (ENDOFTEXT, START, END)
TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
  "{{ message['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
  "Hello there, what can I get you? I'll have 12 mochas and 3 milks.\n\n",
  "def f(x):\n\treturn x  # 3 spaces\n    y = [1, 22, 333]\n",
  "don't we'd THEY'RE HTTPServer camelCase über naïve 日本語 hello\r\n",
  "   hello there    there!!! ... (x) => {y}; 1234567 + 89 = \u0661\u0662",
] * 4
# What texts are made of: things that pre-tokenizers tell apart.
PARTS = (
  "hello", " there", "Hello", " HTTPServer", "camelCase", "über", "e\u0301",
  "日本語", "한국", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "1", "22",
  "333", "4444", " 5", "\u0661", "Ⅻ", "½", "'s", "'LL", "don't", ",", ".", "!!",
  "...", " (", ") {", "=>", "/", "_", "<", "$+", "|", "。", "！", "😀", "👩‍👧",
  "\u00a0", "\u3000", "\u200b", "\x00", "ǅ", "ʰ", "µ", "\u2126", "ﬁ",
)  # fmt: skip


def write(
  path: pathlib.Path,
  tokens: Sequence[str] | None = ("a", "b", "ab"),
  *,
  model: str | None = "gpt2",
  architecture: str = "llama",
  kinds: Sequence[int] | None = None,
  keys: Mapping[str, object] | None = None,
  tensors: Mapping[str, np.ndarray] | None = None,
  **fields: object,
) -> pathlib.Path:
  """Writes a file.

  Args:
    path: File to write.
    tokens: The tokens.
    model: `tokenizer.ggml.model`.
    architecture: `general.architecture`.
    kinds: Kinds of the tokens; None for a file that does not say.
    keys: Values of other keys.
    tensors: Weights.
    **fields: Values of `tokenizer.ggml.NAME`; None leaves the key out.
  """
  writer = gguf.GGUFWriter(path, architecture)
  fields = {"model": model, "tokens": tokens} | fields
  if kinds is not None:
    fields["token_type"] = [int(kind) for kind in kinds]
  for name, value in fields.items():
    add(writer, f"tokenizer.ggml.{name}", value)
  for key, value in (keys or {}).items():
    add(writer, key, value)
  for name, tensor in (tensors or {}).items():
    writer.add_tensor(name, tensor)
  finish(writer)
  return path


def add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
  """Adds a value, integers as llama.cpp's converter does: unsigned."""
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  elif value is not None:
    writer.add_array(key, list(value))


def finish(writer: gguf.GGUFWriter) -> None:
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def byte_level(
  pre_tokenizer: pre_tokenizers.PreTokenizer, **options: object
) -> tokenizers.Tokenizer:
  """A small tokenizer trained behind a pre-tokenizer.

  It has a token, " zebra", that no merge gives.

  Args:
    pre_tokenizer: How text is cut, and its bytes written as letters.
    **options: Of the BPE model.
  """
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizer
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=list(SPECIAL),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(CORPUS, trainer)
  vocab, merges = vocabulary(backend)
  vocab["\u0120zebra"] = len(vocab)
  trained = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=merges, **options)
  )
  trained.pre_tokenizer = pre_tokenizer
  trained.decoder = decoders.ByteLevel()
  trained.add_special_tokens(list(SPECIAL))
  return trained


def vocabulary(
  backend: tokenizers.Tokenizer,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """The ids and merges of a BPE tokenizer."""
  model = json.loads(backend.to_str())["model"]
  return model["vocab"], [tuple(merge) for merge in model["merges"]]


def write_byte_level(
  path: pathlib.Path, backend: tokenizers.Tokenizer, **fields: object
) -> pathlib.Path:
  """Writes a tokenizer of `byte_level`, with ids of its special tokens."""
  vocab, merges = vocabulary(backend)
  tokens = sorted(vocab, key=vocab.get)
  kinds = [Kind.CONTROL if t in SPECIAL else Kind.NORMAL for t in tokens]
  fields = {
    "merges": [" ".join(merge) for merge in merges],
    "bos_token_id": vocab[START],
    "eos_token_id": vocab[END],
    "padding_token_id": vocab[ENDOFTEXT],
    "add_bos_token": False,
  } | fields
  return write(path, tokens, kinds=kinds, **fields)
