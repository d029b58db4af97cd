"""What chat templates are given besides role and content of messages.

The texts in the arguments of tool calls are holes of a plan, like contents, so
that no text in them becomes a special token. All else that a template writes
of a call or a tool (names, ids, descriptions) is literal text of the plan.
"""

import json
from collections.abc import Sequence
from typing import Any

from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.text import rendering

# Numbers of holes below this are those of messages.
FIRST_HOLE = 50_000


def holes(
  messages: Sequence[Message],
) -> tuple[tuple[str, ...], dict[int, str]]:
  """Returns what messages have besides role and content, with holes.

  Returns:
    For each message a JSON object with its further keys, "" if it has none; and
    the text of each hole. The numbers of holes in the first messages do not
    depend on what follows them.
  """
  texts: dict[int, str] = {}

  def holed(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: holed(v) for key, v in value.items()}
    if isinstance(value, list):
      return [holed(v) for v in value]
    if not isinstance(value, str) or not value:
      return value
    number = FIRST_HOLE + len(texts)
    texts[number] = value
    return rendering.HOLE.format(number)

  found = []
  for message in messages:
    more = {
      key: value
      for key, value in message.items()
      if key not in ("role", "content", "weight", records.VARIABLES)
    }
    for key in rendering.THOUGHTS:
      if key in more:
        more[key] = holed(more[key])
    if "tool_calls" in more:
      more["tool_calls"] = [
        {**call, "function": _with(call["function"], holed)}
        for call in more["tool_calls"]
      ]
      if not records.said(message):
        more["content"] = ""
    found.append(json.dumps(more, ensure_ascii=False) if more else "")
  return tuple(found), texts


def _with(function: dict[str, Any], holed: Any) -> dict[str, Any]:
  arguments = function.get("arguments")
  return {**function, "arguments": holed(arguments)} if arguments else function
