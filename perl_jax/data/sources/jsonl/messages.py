"""Reads the messages of a user's row, and says what is wrong with them.

Every error names the line, the field, the value found there and how to repair
it.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any

from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.sources.jsonl import keys
from perl_jax.data.unusable import UnusableError

ROLES = ("system", "user", "assistant", "tool")
# Another name of a role, as OpenAI's tools had it before they had types.
_SAME = {"function": "tool"}


def read(
  value: Any, field: str, where: str, ignore: Collection[str] = ()
) -> tuple[tuple[Message, ...], set[str]]:
  """Checks a list of role/content messages.

  Args:
    value: What the row has.
    field: Name of the field that it is in, for errors.
    where: File and line, for errors.
    ignore: Keys to leave out whatever they mean.

  Returns:
    The messages, and the names of their further keys, which are left out.

  Raises:
    UnusableError: It is no list of messages, or a message is malformed.
    ValueError: A message has a key that may not be left out.
  """
  if not isinstance(value, list) or not value:
    raise error(
      where,
      field,
      f"must be a list of {{'role', 'content'}} messages, but is"
      f" {found(value)}.",
      "which have no list of messages",
    )
  messages, ignored = [], set()
  for number, message in enumerate(value):
    if _is_plain(message):
      messages.append(dict(message))
      continue
    name = f"{field}[{number}]"
    if not isinstance(message, dict):
      raise error(
        where,
        name,
        f"must be a {{'role', 'content'}} object, not {found(message)}.",
        "in which a message is no object",
      )
    left_out = {key for key in message if key in ignore}
    message = {k: v for k, v in message.items() if k not in left_out}
    kept, others = _message(message, name, where)
    messages.append(kept)
    ignored |= left_out | others
  return tuple(messages), ignored


def _is_plain(message: Any) -> bool:
  """Whether a message has a role and a text, and nothing else to check."""
  if not isinstance(message, dict) or len(message) != 2:
    return False
  role, content = message.get("role"), message.get("content")
  return (
    isinstance(content, str)
    and role in ROLES
    and bool(content)
    and not content.isspace()
  )


def _message(
  message: dict[str, Any], name: str, where: str
) -> tuple[Message, set[str]]:
  """Checks one message; see `read`."""

  def refused(key: str, problem: str) -> ValueError:
    return ValueError(f"{where}: field {name + '.' + key!r}: {problem}")

  role = message.get("role")
  if not isinstance(role, str):
    raise error(
      where,
      name,
      f"'role' must be text, but is {found(role)}{_keys_of(message)}.",
      "in which a message has no role",
    )
  role = _SAME.get(role, role)
  if role not in ROLES:
    raise error(
      where,
      name,
      f"unknown role {role!r}: it is one of {listed(ROLES)}.",
      "in which a message has an unknown role",
    )
  further, ignored = keys.of_message(message, refused)
  content = keys.text_of(message.get("content"), refused)
  if content in (None, "") and "tool_calls" in further:
    content = records.calls_text(further)
  if content is None and role == "tool":
    content = ""  # It returned nothing.
  if not isinstance(content, str):
    raise error(
      where,
      name,
      f"'content' must be text, but is {found(content)}{_keys_of(message)}.",
      "in which a content is not text",
    )
  if role == "user" and not content.strip():
    raise error(
      where, name, "the user says nothing.", "in which the user says nothing"
    )
  return {"role": role, "content": content, **further}, ignored


def _keys_of(message: dict[str, Any]) -> str:
  """Returns what a message has if it lacks a role or a content, for errors."""
  if {"role", "content"} <= {k for k, v in message.items() if v is not None}:
    return ""
  there = listed(key for key, value in message.items() if value is not None)
  return f" (the message has {there}); give each message both"


def check_text(text: str, field: str, where: str) -> None:
  """Checks that a text is no message, or list of them, as Python prints it.

  Raises:
    UnusableError: It is, as where a table of lists was saved as CSV.
  """
  start = text.lstrip()[:3]
  if start == "[{'":
    what, printed = "list of messages", "'role'" in text or "'from'" in text
  else:  # An answer may be another object of Python.
    what, printed = (
      "message",
      start.startswith("{'")
      and any(
        f"'{who}'" in text and f"'{said}'" in text
        for who, said in (("role", "content"), ("from", "value"))
      ),
    )
  if printed:
    raise error(
      where,
      field,
      f"is a {what} as Python prints it: {found(text)}. Write the"
      f" {what.split()[0]} itself, or its text with json.dumps.",
      f"in which Python has printed a {what}",
    )


def error(
  where: str, field: str, problem: str, reason: str = ""
) -> UnusableError:
  """Returns the error that a field of a line has a problem.

  Args:
    where: File and line.
    field: Name of the field.
    problem: What is wrong, and the way out.
    reason: Why the row is left out, see `UnusableError`; by default, that the
      field is wrong.
  """
  return UnusableError(
    f"{where}: field {field!r}: {problem}", reason or f"by their {field!r}"
  )


def found(value: Any) -> str:
  """Returns a value as JSON text of at most 60 characters, for errors."""
  text = json.dumps(value, ensure_ascii=False, default=str)
  return text if len(text) <= 60 else text[:57] + "..."


def listed(fields: Iterable[str]) -> str:
  """Returns names separated by commas, for errors."""
  return ", ".join(fields) or "none"
