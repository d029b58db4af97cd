"""SHA-256 of what a run reads: rows of tokens, and a tokenizer.

They are of what is learned from, and not of the files that hold it: rows in
another file format, or a tokenizer that was saved anew, have the same.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from perl_jax.data import records
from perl_jax.data.text import sameness
from perl_jax.data.text.tokenization import Tokenization

# What names a record and does not describe it.
_NAMES = ("id", "group")


def of_rows(
  rows: Iterable[Any], records_: Sequence[records.Record] = ()
) -> str:
  """SHA-256 of encoded rows in their order, as hex.

  One row at a time is turned into bytes.

  Args:
    rows: Named tuples of arrays, lists of integers or Booleans, and numbers:
      tokens, masks, labels, as a loader takes them.
    records_: The records that the rows were made of, if more of them is used
      than what is encoded, as by a reward function.
  """
  digest = hashlib.sha256()
  for row in rows:
    for name, value in zip(row._fields, row, strict=True):
      array = np.asarray(value)
      # Integers have the size that the platform gives them.
      array = array.astype("<i8" if array.dtype.kind in "iu" else array.dtype)
      digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
      digest.update(array.tobytes())
  for record in records_:
    told = {
      field.name: getattr(record, field.name)
      for field in dataclasses.fields(record)
      if field.name not in _NAMES
    }
    digest.update(_json(told))
  return digest.hexdigest()


def of_tokenizer(tokenization: Tokenization) -> str:
  """SHA-256 of what a tokenizer does, as hex.

  It covers the vocabulary, the tokens that end a response, the chat template,
  and how texts are cut in which tokenizers differ.
  """
  tokenizer = tokenization.tokenizer
  told = {
    "vocabulary": sorted(tokenizer.get_vocab().items()),
    "stop": list(tokenization.stop_ids),
    "pad": tokenization.pad_id,
    "closing": list(tokenization.closing),
    "template": tokenizer.chat_template,
    "texts": [
      tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
      for text in sameness.TEXTS
    ],
  }
  return hashlib.sha256(_json(told)).hexdigest()


def _json(value: Any) -> bytes:
  """The value as a line of JSON, keys sorted; what JSON lacks as its text."""
  text = json.dumps(value, sort_keys=True, default=str)
  return text.encode("utf-8", "surrogatepass") + b"\n"
