"""Names in error messages: those that are misspelt, and those of configs."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
_CONFIGS = "configs"


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


def config(name: str) -> str:
  """One of the project's own configs, as the user who reads an error knows it.

  In a clone it is a file, "configs/rl.py". Where the package is installed, that
  path leads nowhere, and the name does: "perl_jax --config=rl".
  """
  if (_PACKAGE / _CONFIGS).is_dir():
    return f"perl_jax --config={name}"
  return f"{_CONFIGS}/{name}.py"
