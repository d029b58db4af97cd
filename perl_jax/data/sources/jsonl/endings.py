"""Rows that were already put into a chat template, or into a part of one.

A token that ends a turn is text in a row: it is split into characters, which
would be learned, and the end of the turn follows. At the end of a reply it
says what is learned anyway, and is left out. Within a prompt nobody can say
what was meant, and the log has it.
"""

import re
from collections import Counter
from typing import Any

from perl_jax.data.sources.jsonl import pairs

Fields = dict[str, Any]
# What ends a turn or a text in the templates of model families.
_STOPS = (
  "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>",
  "<end_of_turn>", "<|end|>", "<|eom_id|>", "<｜end▁of▁sentence｜>", "<eos>",
  "</s>",
)  # fmt: skip
# What begins or ends a turn in them, and in HelpSteer2.
_CONTROL = re.compile(
  r"<\|im_(?:start|end)\|>|<\|(?:start|end)_header_id\|>|<\|eot_id\|>"
  r"|<extra_id_1>|<(?:start|end)_of_turn>|\[/?INST\]|<\|(?:user|assistant|system)\|>"
)
# What is a transcript, unless a user says it.
_TRANSCRIPT = re.compile(r"\s*(?:Human|User):.*\n(Assistant:)", re.DOTALL)
_REPLIES = (*pairs.REPLIES, "responses", "completions")


def without(fields: Fields, counts: Counter[str]) -> Fields:
  """Returns a row whose replies end without a token that ends a turn.

  Args:
    fields: A row in the fields of `rows`.
    counts: How many rows were changed, or have such tokens in their prompts,
      by what was done or is there; updated in place.
  """
  found: set[str] = set()
  changed = {}
  for name in (*_REPLIES, "messages", "prompt"):
    value = fields.get(name)
    if value is None or (name == "prompt" and isinstance(value, str)):
      continue
    made = _ended(value, found)
    if made != value:
      changed[name] = made
  for stop in sorted(found):
    counts[
      f"have replies that end with {stop!r}, which is left out: the end of a"
      " turn is learned as the chat template writes it"
    ] += 1
  for token in sorted(_controls(fields.get("prompt", fields.get("messages")))):
    counts[
      f"have {token!r} in a prompt, as if it was put into a chat template"
      " before, and it is text there. Give the messages by themselves, or, for"
      " SFT, whole texts as `text`"
    ] += 1
  return fields | changed if changed else fields


def _ended(value: Any, found: set[str]) -> Any:
  """Returns a reply, messages, or a list of replies without such tokens."""
  if isinstance(value, list):
    return [_ended(part, found) for part in value]
  if isinstance(value, dict):
    content = value.get("content")
    if value.get("role") != "assistant" or not isinstance(content, str):
      return value
    ended = _ended(content, found)
    return value if ended == content else value | {"content": ended}
  if not isinstance(value, str):
    return value
  text = value.rstrip()
  if not text.endswith(_STOPS):
    return value
  stop = next(stop for stop in _STOPS if text.endswith(stop))
  if stop == "</s>" and "<s>" in text:
    return value  # HTML has it around what is struck out.
  found.add(stop)
  return text.removesuffix(stop).rstrip()


def _controls(prompt: Any) -> set[str]:
  """Returns the first such token of each text that no assistant says."""
  if isinstance(prompt, str):
    if match := _TRANSCRIPT.match(prompt):
      return {match.group(1)}
    match = _CONTROL.search(prompt)
    return {match.group()} if match else set()
  if not isinstance(prompt, list):
    return set()
  contents = [
    turn.get("content")
    for turn in prompt
    if isinstance(turn, dict) and turn.get("role") != "assistant"
  ]
  return set().union(*(_controls(c) for c in contents if isinstance(c, str)))
