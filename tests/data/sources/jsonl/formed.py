"""Reads rows in memory as those of a file, and rows to read."""

from perl_jax.data.sources.jsonl import forms
from tests.data.text.messages import assistant, user

PAIR = {"prompt": [user("q")], "chosen": [assistant("a")]}
PAIR |= {"rejected": [assistant("b")]}
RATED = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 4.5, "4"]}


def read(*rows, kind="preferences", **stated):
  """All rows of a file as (file and line, fields)."""
  reader = forms.Reader(kind, forms.Reading(**stated))
  found = [
    pair
    for number, row in enumerate(rows, 1)
    for pair in reader.rows(f"f:{number}", row)
  ]
  return found + list(reader.rest())


def one(row, kind="preferences", **stated):
  ((where, fields),) = read(row, kind=kind, **stated)
  assert where == "f:1"
  return fields
