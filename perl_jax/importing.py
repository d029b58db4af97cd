"""Imports JAX, or says in one line which variable keeps it from that.

JAX reads its environment variables while it is imported, and raises at a value
that it does not take. A command imports this module before the others.
"""

import os
import re
import sys
from collections.abc import Mapping


def explain(error: ValueError, variables: Mapping[str, str]) -> str:
  """Returns what is wrong with a variable of JAX, and the way out.

  Args:
    error: What was raised while JAX was imported, which names the variable or
      its flag, the same in small letters.
    variables: Environment variables.

  Returns:
    One line, or "" where the error is about no variable that is set.
  """
  words = {word.upper() for word in re.findall(r"\w+", str(error))}
  found = sorted(n for n in variables if n.startswith("JAX_") and n in words)
  if not found:
    return ""
  (name, *_) = found
  said = " ".join(str(error).split()).rstrip(".")
  return (
    f"{name}={variables[name]!r} is no value that JAX takes ({said}). Unset"
    f" {name}, or correct it."
  )


try:
  import jax  # noqa: F401
except ValueError as _error:
  _said = explain(_error, os.environ)
  if not _said:
    raise
  sys.exit(f"error: {_said}")
