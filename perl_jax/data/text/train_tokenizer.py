"""Trains a byte-level BPE tokenizer and saves it for Hugging Face.

The result is a directory that `transformers.AutoTokenizer` reads, with a chat
template, so that `tokenization` treats models trained here and models from
elsewhere in the same way.
"""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator

from perl_jax.data import records
from perl_jax.data.text.hugging_face import import_transformers

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)
SPECIAL_TOKENS = (PAD, BOS, END, *ROLE_TOKENS)
_BYTES = 256
# Text fields of a record that no model reads.
_NAMES = ("id", "group")
# Fields that are a reply: a text, or a message with tool calls.
_REPLIES = ("chosen", "rejected", "response")

# Pieces are cut before spaces and around every digit, nowhere else. Unlike
# the GPT-2 pattern this lets a merge run across punctuation, so that a piece
# such as ` "quantity":` of a JSON turn can become one token.
PATTERN = "[0-9]| ?[^ 0-9]+| "

CHAT_TEMPLATE = (
  "{{- bos_token }}"
  "{%- for message in messages %}"
  "{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
  "{{- raise_exception('unknown role ' + message['role']) }}"
  "{%- endif %}"
  "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
  "{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(
  texts: Iterable[str], vocab_size: int, directory: str | os.PathLike
) -> pathlib.Path:
  """Trains a tokenizer on `texts` and saves it as a directory.

  The same texts give the same bytes. The directory appears only when it is
  complete, and replaces a tokenizer that was there before.

  Args:
    texts: Texts to learn merges from: the contents of messages, without roles.
    vocab_size: Largest number of tokens, including the 7 special tokens and the
      256 bytes. Text with fewer distinct pieces gives fewer tokens.
    directory: Directory to save to.

  Returns:
    The directory, with `tokenizer.json`, `tokenizer_config.json` and
    `chat_template.jinja`.

  Raises:
    ValueError: The vocabulary is too small for the bytes, there is no text, or
      `directory` holds something that is not a tokenizer.
  """
  smallest = len(SPECIAL_TOKENS) + _BYTES
  if vocab_size < smallest:
    raise ValueError(
      f"vocab_size={vocab_size} is too small: {len(SPECIAL_TOKENS)} special "
      f"tokens and {_BYTES} bytes need at least {smallest}."
    )
  directory = pathlib.Path(directory)
  _check_replaceable(directory)
  tokenizer = _train(texts, vocab_size)
  directory.parent.mkdir(parents=True, exist_ok=True)
  scratch = pathlib.Path(
    tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)
  )
  try:
    staged = scratch / "new"
    _wrap(tokenizer).save_pretrained(staged)
    if directory.exists():
      os.rename(directory, scratch / "old")
    os.rename(staged, directory)
  finally:
    shutil.rmtree(scratch)
  return directory


def record_texts(rows: Iterable[records.Record]) -> Iterator[str]:
  """Yields the texts that `train_tokenizer` learns merges from.

  These are the contents of all messages, and every other field that is text or
  a reply, such as a response; not the id and the group of a row.
  """
  for row in rows:
    for field in dataclasses.fields(row):
      value = getattr(row, field.name)
      if isinstance(value, tuple):
        yield from (message["content"] for message in value)
      elif isinstance(value, dict) and field.name in _REPLIES:
        yield records.text_of(value)
      elif isinstance(value, str) and value and field.name not in _NAMES:
        yield value


def _check_replaceable(directory: pathlib.Path) -> None:
  if directory.is_file():
    raise ValueError(f"{directory} is a file; a tokenizer is a directory.")
  in_use = directory.is_dir() and any(directory.iterdir())
  if in_use and not (directory / "tokenizer.json").exists():
    raise ValueError(
      f"{directory} is not empty and has no tokenizer.json, so it is not "
      "replaced by a tokenizer. Choose another directory."
    )


def _train(texts: Iterable[str], vocab_size: int):
  """Returns a `tokenizers.Tokenizer` with merges trained on `texts`."""
  import tokenizers  # Heavy, and only training needs it.
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=2,
    special_tokens=list(SPECIAL_TOKENS),
    # All 256 bytes, whether the text has them or not: no text is unknown.
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  seen = 0

  def counted() -> Iterator[str]:
    nonlocal seen
    for text in texts:
      seen += bool(text)
      yield text

  tokenizer.train_from_iterator(counted(), trainer)
  if not seen:
    raise ValueError("There is no text to train a tokenizer on.")
  return tokenizer


def _wrap(tokenizer):
  return import_transformers().PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token=BOS,
    eos_token=END,
    pad_token=PAD,
    extra_special_tokens=list(ROLE_TOKENS),
    chat_template=CHAT_TEMPLATE,
    clean_up_tokenization_spaces=False,
  )
