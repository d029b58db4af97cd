"""What is beside the text of a reply in its row: tool calls, and thoughts.

xlam-function-calling has calls as the JSON text of a list, and others have what
was thought in a column of its own. Both are keys of a message, so that a chat
template writes them as the model does.
"""

from collections import Counter
from typing import Any

from perl_jax import json_text
from perl_jax.data.sources.jsonl import pairs, rated, refused

Fields = dict[str, Any]
# What was done to a row, for the log.
CALLED = (
  "have replies that are calls of `tools` as JSON text, which are read as"
  " `tool_calls`"
)
THOUGHT = "have thoughts in a column, which are read as those of the response"
_TOOLS = ("tools", "functions")


def with_more(fields: Fields, counts: Counter[str]) -> Fields:
  """Returns a row whose replies are messages if they are more than text.

  Args:
    fields: A row in which conversations are messages.
    counts: How many rows were changed, by what was done; updated in place.
  """
  texts = pairs.texts_of(fields)
  if not texts:
    return fields
  tools = not all(_is_empty(fields.get(name)) for name in _TOOLS)
  calls = {name: _calls(text) for name, text in texts.items() if tools}
  if any(calls.values()) and "prompt" in fields:
    counts[CALLED] += 1
    fields = fields | {
      name: [_message(text, calls[name])] for name, text in texts.items()
    }
  columns = [n for n in refused.THOUGHTS if isinstance(fields.get(n), str)]
  thoughts = [name for name in columns if fields[name].strip()]
  if len(thoughts) == len(texts) == 1 and not texts.keys() & {*pairs.SIDES}:
    counts[THOUGHT] += 1
    ((name, text),) = texts.items()
    (key,) = thoughts
    message = _message(text, calls.get(name, [])) | {key: fields[key]}
    fields = fields | {name: [message]}
  elif thoughts:
    return fields
  return rated.without(fields, columns) if columns else fields


def _message(text: str, calls: list[Any]) -> dict[str, Any]:
  message = {"role": "assistant", "content": "" if calls else text}
  return message | ({"tool_calls": calls} if calls else {})


def _is_empty(value: Any) -> bool:
  """Whether tools are none, also as JSON text."""
  return refused.is_absent(value) or value in ("[]", "null", "None")


def _calls(text: str) -> list[Any]:
  """Returns the calls in a JSON text; [] if it holds something else."""
  if text.lstrip()[:1] != "[":
    return []
  try:
    calls = json_text.parse(text)
  except json_text.Fault:
    return []
  said = {"name", "arguments"}
  return (
    calls
    if all(
      isinstance(call, dict)
      and said <= call.keys() <= {*said, "id", "type"}
      and isinstance(call["name"], str)
      for call in calls
    )
    else []
  )
