"""The right answers of prompts, which a reward function sees as references."""

from collections.abc import Mapping
from typing import Any

from perl_jax.data.sources.jsonl import cells, described, refused

# What is done to rows whose answers have no text.
NO_TEXT = "have answers that are no text; reference is None"


def given(fields: Mapping[str, Any], raw: Mapping[str, Any]) -> list[Any]:
  """Returns the answers that a row has, the best first.

  Args:
    fields: The row with our names.
    raw: The row as it is in the file.
  """
  found = [fields.get(name, raw.get(name)) for name in described.ANSWERS]
  rule = raw.get("reward_model")  # As files for verl have it.
  if isinstance(rule, dict):
    found.append(rule.get("ground_truth"))
  plain = map(cells.plain, found)
  return [a for a in plain if a == "" or not refused.is_absent(a)]


def text_of(value: Any) -> str | None:
  """Returns an answer as text; None if it has none, as an object has.

  A number is written as short as it can be (42.0 as 42), a Boolean as JSON
  writes it, and a list of one as what is in it.
  """
  if isinstance(value, list) and len(value) == 1:
    return text_of(cells.plain(value[0]))
  if isinstance(value, str):
    return value
  if cells.is_missing(value):
    return None
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value) if isinstance(value, (int, float)) else None
