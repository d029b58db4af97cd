"""What the keys of rows and messages mean.

A key is rendered by the chat template, masks a message, is refused by name
(see `refused`), or is ignored and listed in the log.
"""

import json
from collections.abc import Mapping
from typing import Any

from perl_jax import json_text
from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.sources.jsonl import refused
from perl_jax.data.sources.jsonl.refused import (
  OLD_TOOLS,
  RENDERED,
  SYSTEM,
  WEIGHTS,
  Complain,
  is_absent,
)
from perl_jax.data.unusable import UnusableError

# Types of the parts of a content that are text.
_PARTS = ("text", "input_text", "output_text")
# Keys of the function of a call, which may be by themselves.
_FUNCTION = ("name", "arguments")
# An older name, before tools had other types than functions.
_OLD_CALL = "function_call"
# Columns with what is around the messages of a row.
CONTEXT = {*SYSTEM, "tools", OLD_TOOLS, records.VARIABLES}
# Columns with the part of a benchmark that a row belongs to: those of
# RewardBench and of RM-Bench.
SUBSETS = ("subset", "domain")
# What `apply_chat_template` of transformers takes besides variables.
ARGUMENTS = {
  "add_generation_prompt", "chat_template", "continue_final_message",
  "conversation", "documents", "max_length", "messages", "padding",
  "return_assistant_tokens_mask", "return_dict", "return_tensors",
  "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "tools",
  "truncation",
}  # fmt: skip


def of_message(
  message: Mapping[str, Any], complain: Complain
) -> tuple[Message, set[str]]:
  """Returns the keys of a message besides role and content.

  Args:
    message: A message.
    complain: Makes an error about a key.

  Returns:
    The keys that are rendered, with `weight` if it is 0; and the names of keys
    that are left out.

  Raises:
    UnusableError: A key has a wrong value.
    ValueError: A key would change the meaning and cannot be honoured.
  """
  kept: Message = {}
  ignored = set()
  # Who answers is no part of what a model writes.
  rendered = {*RENDERED}
  if message.get("role") == "assistant":
    rendered -= {"name", "tool_call_id"}
  for key, value in message.items():
    if key in ("role", "content") or is_absent(value):
      continue
    if refused.plain_name(key) in WEIGHTS:
      weight = refused.weight_of(value)
      if weight is None:
        raise _wrong(
          complain,
          key,
          f"must be 0 or 1, since a message is a target or is not, but is"
          f" {json.dumps(value, default=str)}.",
        )
      if not weight:
        kept["weight"] = 0
    elif key == "tool_calls":
      if calls := _calls(value, complain):
        kept[key] = calls
    elif key == _OLD_CALL:
      kept["tool_calls"] = _calls(
        [{"type": "function", "function": value}], complain
      )
    elif key in rendered:
      kept[key] = value
    elif key in RENDERED:
      ignored.add(key)
    else:
      refused.check_ignored(key, value, complain)
      refused.check_mask(key, value, complain)
      ignored.add(key)
  return kept, ignored


def tools_of(
  fields: Mapping[str, Any], complain: Complain
) -> tuple[list[dict[str, Any]], set[str]]:
  """Returns the tools of a row, and the names of the columns they are in.

  Raises:
    UnusableError: They are no list of objects.
  """
  empty: set[str] = set()
  for key in ("tools", OLD_TOOLS):
    value = _parsed(fields.get(key), key, complain)
    if is_absent(value):
      empty |= {key} & fields.keys()
      continue
    if isinstance(value, list):
      value = [_parsed(tool, key, complain) for tool in value]
    if not _is_list_of_objects(value):
      raise _wrong(
        complain, key, "must be a list of objects that describe functions."
      )
    tools = [_without_nulls(tool) for tool in value]
    if key == OLD_TOOLS:
      tools = [{"type": "function", "function": tool} for tool in tools]
    return tools, empty | {key}
  return [], empty


def variables_of(
  fields: Mapping[str, Any], complain: Complain
) -> dict[str, Any]:
  """Returns the variables that a row gives to the chat template.

  Raises:
    UnusableError: They are no object.
    ValueError: One is an argument of transformers.
  """
  key = records.VARIABLES
  value = _parsed(fields.get(key), key, complain)
  if is_absent(value):
    return {}
  if not isinstance(value, dict):
    raise _wrong(
      complain,
      key,
      "must be an object with variables of the chat template, such as"
      f' {{"enable_thinking": true}}, but is {json.dumps(value, default=str)}.',
    )
  taken = sorted(ARGUMENTS & value.keys())
  if taken:
    raise complain(
      key,
      f"has {taken[0]!r}, which is an argument of apply_chat_template and no"
      " variable of a template. Leave it out of the object; tools are a column"
      " `tools`.",
    )
  return _without_nulls(value)


def text_of(content: Any, complain: Complain) -> Any:
  """Returns the text of a content that is a list of texts, or the content.

  Raises:
    UnusableError: A part is not text, such as an image.
  """
  if not isinstance(content, list):
    return content
  for part in content:
    if isinstance(part, str):
      continue
    kind = part.get("type") or "text" if isinstance(part, dict) else None
    if kind not in _PARTS or not isinstance(part.get("text"), str):
      raise _wrong(
        complain,
        "content",
        f"has a part that is not text ({kind}), which cannot be read. Leave out"
        " the rows with such parts, or write the part as text.",
      )
  return "".join(
    part if isinstance(part, str) else part["text"] for part in content
  )


def _calls(value: Any, complain: Complain) -> list[dict[str, Any]]:
  """Returns tool calls as transformers describes them, for all templates.

  A call has its function under that key, and arguments are objects. OpenAI
  writes the arguments as JSON text. Templates expect objects, and so do
  the servers that render them for the model later.
  """
  value = _parsed(value, "tool_calls", complain)
  if is_absent(value):
    return []
  if not _is_list_of_objects(value):
    raise _wrong(
      complain, "tool_calls", "must be a list of objects, each one call."
    )
  calls = []
  for call in map(_without_nulls, value):
    own = {k: v for k, v in call.items() if k in _FUNCTION}
    function = call.get("function", own)
    if not isinstance(function, dict) or not isinstance(
      function.get("name"), str
    ):
      raise _wrong(
        complain,
        "tool_calls",
        "must have the name of a function in each call, under `function` or by"
        " itself.",
      )
    arguments = _parsed(function.get("arguments"), "tool_calls", complain)
    if isinstance(arguments, dict):
      function = {**function, "arguments": arguments}
    if "function" not in call:
      rest = {k: v for k, v in call.items() if k not in _FUNCTION}
      call = {"type": "function", **rest}
    calls.append({**call, "function": function})
  return calls


def _wrong(complain: Complain, key: str, problem: str) -> UnusableError:
  """Returns the error that one row has a wrong value, and is left out."""
  return UnusableError(str(complain(key, problem)), f"by their {key!r}")


def _is_list_of_objects(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _parsed(value: Any, key: str, complain: Complain) -> Any:
  """Returns what a JSON text holds, or the value as it is.

  Raises:
    UnusableError: An object in the text has a key twice.
  """
  if not isinstance(value, str):
    return value
  try:
    return json_text.parse(value)
  except json_text.KeyTwice as error:
    raise UnusableError(
      str(complain(key, f"is JSON text in which {error.what}.")),
      "in which a JSON text has a key twice",
    ) from error
  except json_text.Fault:
    return value


def _without_nulls(value: Any) -> Any:
  """Returns a value without the nulls in it, which tables of objects leave."""
  if isinstance(value, dict):
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_without_nulls(v) for v in value]
  return value
