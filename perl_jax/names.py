"""Suggestions for a name that is misspelt, for error messages."""

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, known: Iterable[str]) -> str | None:
  """Returns the known name that is most like `name`, None if none is.

  Names are alike if their `difflib` similarity ratio is at least 0.6. A name
  out of a config or a file that is no string is compared by its text.
  """
  found = difflib.get_close_matches(str(name), list(known), n=1)
  return found[0] if found else None


def did_you_mean(name: Any, known: Iterable[str]) -> str:
  """Returns a sentence that suggests the known name that is most like `name`.

  The sentence is `" Did you mean 'x'?"`, with the space that separates it from
  what precedes it; "" if no known name is like `name`.
  """
  near = nearest(name, known)
  return "" if near is None else f" Did you mean {near!r}?"
