"""Conversations as people write them, turned into role/content messages.

Only the layout is changed here; `messages` reads and checks what they say.
"""

import ast
import re
from collections.abc import Sequence
from typing import Any

from perl_jax import json_text
from perl_jax.data.sources import hh

# Who speaks, in lower case. Other names are left as they are, and refused with
# the names of the roles.
_SPEAKERS = {
  **dict.fromkeys(("system", "developer"), "system"),
  **dict.fromkeys(("user", "human", "prompter"), "user"),
  **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing"), "assistant"),
  **dict.fromkeys(("model", "bot", "ai", "chatbot"), "assistant"),
  **dict.fromkeys(("tool", "function"), "tool"),
  **dict.fromkeys(("observation", "function_response"), "tool"),
  "environment": "tool",
}
_ROLES = ("user", "assistant", "system", "tool")
# Keys of a message with who speaks, and with what is said.
WHO, _WHAT = ("role", "from", "speaker"), ("content", "value", "text")
_PAIRS = (("role", "content"), ("from", "value"))
# A transcript with turns by line, and where a line begins one; HelpSteer2's.
_LINES = re.compile(r"\s*Human:.*\nAssistant:\s*\Z", re.DOTALL)
_NEXT = re.compile(r"\n+(?=(?:Human|Assistant):)")
_MARKED = re.compile(r"(?:^|\n)<extra_id_1>(User|Assistant)(?:\n|\Z)")
_TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)


def of(value: Any) -> Any:
  """Returns a value as role/content messages if it is a conversation.

  A conversation is a list of messages, also with other names of keys and roles
  (`{"from", "value"}` in ShareGPT), the JSON text of one, a single message, or
  an object of two lists (a table of structs, as TFDS and older versions of
  `datasets` store lists of objects). White space may be around a JSON text.
  `{"input", "output"}` is what a user says and the answer (Capybara). Other
  values are returned as they are.
  """
  if isinstance(value, str):
    talk = _listed(value) if value.lstrip()[:1] in ("[", "{") else None
    return value if talk is None else of(talk)
  if isinstance(value, dict):
    value = _rows_of(value)
  if isinstance(value, list) and value and all(map(_is_exchange, value)):
    return [message for turn in value for message in _exchange(turn)]
  if isinstance(value, list) and not all(map(_is_ours, value)):
    return [_message(turn) for turn in value]
  return value


def transcript(text: Any) -> list[dict[str, str]] | None:
  """Returns the messages of a transcript that asks for an answer.

  Its turns begin with `Human:` and `Assistant:` behind a blank line, or with
  `<extra_id_1>User` and `<extra_id_1>Assistant` (HelpSteer2). It ends with a
  turn of the human or with an empty one of the assistant, which is left out.
  With that end, the turns may be without blank lines.

  Returns:
    The messages, or None if it is no text with such turns and such an end.
  """
  if not isinstance(text, str):
    return None
  marked = _MARKED.split(text)
  if len(marked) > 1:
    first = [("Human", marked[0])] if marked[0].strip() else []
    names = {"User": "Human", "Assistant": "Assistant"}
    said = zip(marked[1::2], marked[2::2], strict=True)
    turns = first + [(names[who], what) for who, what in said]
  elif is_transcript(text):
    turns = hh.parse_transcript(padded(text))
  elif _LINES.match(text):
    turns = hh.parse_transcript(padded(_NEXT.sub("\n\n", text)))
  else:
    return None
  if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
    turns = turns[:-1]
  if not turns or turns[-1][0] != "Human":
    return None
  return list(hh.messages(turns))


def is_transcript(text: Any) -> bool:
  """Whether a value is text with a turn of a human and one of an assistant."""
  return isinstance(text, str) and bool(_TRANSCRIPT.match(text))


def padded(text: str) -> str:
  """Returns a transcript with the blank line that marks its first turn."""
  return "\n\n" + text.lstrip()


def is_talk(value: Any) -> bool:
  """Whether a value is a list of turns, in any layout that is read."""
  talk = of(value)
  return (
    isinstance(talk, list)
    and bool(talk)
    and all(isinstance(turn, dict) and _speaks(turn) for turn in talk)
  )


def is_speaker(value: Any) -> bool:
  """Whether a value is the name of a role, in any case."""
  return isinstance(value, str) and value.strip().lower() in _SPEAKERS


def texts_in(text: str) -> list[str] | None:
  """Returns the texts of a list of texts, as JSON or Python writes it.

  Returns:
    The texts, which may be several, or None if it is the text of no such list.
  """
  text = text.strip()
  if text[:1] != "[" or text[-1:] != "]":
    return None
  try:
    value = json_text.parse(text)
  except json_text.Fault:
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      return None
  said = isinstance(value, list) and all(isinstance(v, str) for v in value)
  return value if value and said else None


def ragged(value: Any) -> dict[str, int]:
  """Returns the lengths of the lists of an object that is a conversation.

  A list that is empty is a column that is not there.

  Returns:
    The lengths by name, if they differ; {} if not, and for other values.
  """
  if not isinstance(value, dict):
    return {}
  for who, what in _PAIRS:
    if isinstance(value.get(who), list) and isinstance(value.get(what), list):
      sizes = {k: len(v) for k, v in value.items() if isinstance(v, list) and v}
      return sizes if len(set(sizes.values())) > 1 else {}
  return {}


def same(left: Any, right: Any) -> bool:
  """Whether two messages are equal but for white space around the content."""
  return left == right or (
    isinstance(left, dict)
    and isinstance(right, dict)
    and left.get("role") == right.get("role")
    and _content(left) == _content(right)
  )


def contains(talk: Sequence[Any], part: Sequence[Any]) -> bool:
  """Whether messages occur one after the other among others; see `same`."""
  return any(
    all(map(same, talk[start : start + len(part)], part))
    for start in range(len(talk) - len(part) + 1)
  )


def _is_ours(value: Any) -> bool:
  """Whether a value is a message in the layout that is read."""
  return (
    isinstance(value, dict)
    and value.get("role") in _ROLES
    and value.get("content") is not None
  )


def _is_exchange(value: Any) -> bool:
  """Whether a value has a turn of a user and the answer."""
  return isinstance(value, dict) and value.keys() == {"input", "output"}


def _exchange(turn: dict[str, Any]) -> list[dict[str, Any]]:
  return [
    {"role": "user", "content": turn["input"]},
    {"role": "assistant", "content": turn["output"]},
  ]


def _speaks(turn: dict[str, Any]) -> bool:
  """Whether a message says who speaks, and what is said or called."""
  said = turn.get("content") is not None or "tool_calls" in turn
  return isinstance(turn.get("role"), str) and said


def _listed(text: str) -> Any:
  """Returns the messages in a JSON text, or None if it holds something else.

  An answer may be JSON, too: an object is a message only if it says that one of
  the known roles speaks. Of a text with a key twice, the text is the message,
  which is none.
  """
  try:
    value = json_text.parse(text)
  except json_text.KeyTwice:
    listed = text.lstrip()[:1] == "["
    return [text] if listed and ('"role"' in text or '"from"' in text) else None
  except json_text.Fault:
    return None
  if isinstance(value, dict):
    if not any(is_speaker(value.get(who)) for who in WHO):
      return None
    value = [value]
  said = all(
    isinstance(turn, dict)
    and not turn.keys().isdisjoint(WHO)
    and not turn.keys().isdisjoint((*_WHAT, "tool_calls"))
    for turn in value
  )
  return value if value and said else None


def _content(message: dict[str, Any]) -> Any:
  content = message.get("content")
  return content.strip() if isinstance(content, str) else content


def _rows_of(value: dict[str, Any]) -> Any:
  """Returns an object of lists as a list of objects, a message as a list."""
  for who, what in _PAIRS:
    if isinstance(value.get(who), list) and isinstance(value.get(what), list):
      columns = {k: v for k, v in value.items() if isinstance(v, list) and v}
      if ragged(value):
        return value  # `layouts` says what is wrong with it.
      return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
      ]
    if isinstance(value.get(who), str):
      return [value]
  return value


def _message(turn: Any) -> Any:
  """Returns a turn under other names as a message."""
  if isinstance(turn, list) and turn and all(map(_is_item, turn)):
    turn = dict(turn)  # A map of Arrow.
  if not isinstance(turn, dict):
    return turn
  who = next((key for key in WHO if turn.get(key) is not None), "role")
  what = next((key for key in _WHAT if turn.get(key) is not None), "content")
  message = {
    key: value
    for key, value in turn.items()
    if key not in (who, what)
    and (value is not None or key not in (*WHO, *_WHAT))
  }
  speaker, value = turn.get(who), turn.get(what)
  if speaker == "function_call":
    return message | _call(value)
  if isinstance(speaker, str):
    speaker = _SPEAKERS.get(speaker.strip().lower(), speaker)
  return {"role": speaker, "content": value, **message}


def _is_item(value: Any) -> bool:
  return isinstance(value, tuple) and len(value) == 2


def _call(value: Any) -> dict[str, Any]:
  """Returns the message of a tool call, which ShareGPT files have as JSON."""
  try:
    call = json_text.parse(value) if isinstance(value, str) else value
    calls = call if isinstance(call, list) else [call]
  except json_text.Fault:
    calls = value  # `keys` says what is wrong with it.
  return {"role": "assistant", "content": "", "tool_calls": calls}
