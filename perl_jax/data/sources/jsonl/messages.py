"""Reads the messages of a user's row, and says what is wrong with them.

Every error names the line, the field, the value found there and how to repair
it.
"""

import json
from collections.abc import Iterable
from typing import Any

from perl_jax.data.records import Message

ROLES = ("system", "user", "assistant", "tool")


def read(
  value: Any, field: str, where: str
) -> tuple[tuple[Message, ...], bool]:
  """Checks a list of role/content messages.

  Args:
    value: What the row has.
    field: Name of the field that it is in, for errors.
    where: File and line, for errors.

  Returns:
    The messages, and whether one of them has further keys, which are left out.

  Raises:
    ValueError: It is no list of messages, or a message is malformed.
  """
  if not isinstance(value, list) or not value:
    raise error(
      where,
      field,
      f"must be a list of {{'role', 'content'}} messages, but is"
      f" {found(value)}.",
    )
  for number, message in enumerate(value):
    name = f"{field}[{number}]"
    if not isinstance(message, dict):
      raise error(
        where,
        name,
        f"must be a {{'role', 'content'}} object, not {found(message)}.",
      )
    for key in ("role", "content"):
      if not isinstance(message.get(key), str):
        raise error(
          where,
          name,
          f"{key!r} must be text, but is {found(message.get(key))}.",
        )
    if message["role"] not in ROLES:
      raise error(
        where,
        name,
        f"unknown role {message['role']!r}: it is one of {listed(ROLES)}.",
      )
  messages = tuple({"role": m["role"], "content": m["content"]} for m in value)
  return messages, any(len(message) > 2 for message in value)


def error(where: str, field: str, problem: str) -> ValueError:
  """Returns the error that a field of a line has a problem."""
  return ValueError(f"{where}: field {field!r}: {problem}")


def found(value: Any) -> str:
  """Returns a value as JSON text of at most 60 characters, for errors."""
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else text[:57] + "..."


def listed(fields: Iterable[str]) -> str:
  """Returns names separated by commas, for errors."""
  return ", ".join(fields) or "none"
