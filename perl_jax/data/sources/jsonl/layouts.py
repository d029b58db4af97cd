"""Prompts and conversations under the names that `rows` reads."""

import re
from typing import Any

from perl_jax.data.sources.jsonl import conversations, messages, pairs, rated

Fields = dict[str, Any]
_CONVERSATIONS = ("conversations", "conversation")
_NAMED = "Assistant:"  # Begins a turn of a transcript.
_TRAJECTORY = "trajectory"
_DATA = "data"
# Begins a text that says itself who speaks.
_SPEAKER = re.compile(
  r"\s*(<\||(user|human|prompter|assistant|gpt|model|bot|ai|system)\s*:)",
  re.IGNORECASE,
)
# Fields of rows whose turns, if any, are no prompts.
_SAID = {
  "prompt",
  "messages",
  *_CONVERSATIONS,
  "instruction",
  *pairs.REPLIES,
}
# Fields that may be conversations.
_TALKS = ("prompt", "messages", *pairs.REPLIES)


def is_alpaca(fields: Fields) -> bool:
  """Whether a row is an instruction in the fields of Alpaca."""
  return (
    "instruction" in fields
    and "prompt" not in fields
    and "messages" not in fields
  )


def turns_of(fields: Fields) -> list[str]:
  """Returns the turns of a user that a row has to be answered one by one.

  They are a list `turns` of texts (MT-Bench), or of objects with a `content`
  alone (Arena-Hard); [] of other rows.
  """
  turns = fields.get("turns")
  if isinstance(turns, str):
    turns = conversations.texts_in(turns)
  if not isinstance(turns, list) or not _SAID.isdisjoint(fields):
    return []
  said = [
    turn["content"]
    if isinstance(turn, dict) and turn.keys() == {"content"}
    else turn
    for turn in turns
  ]
  return said if all(isinstance(turn, str) for turn in said) else []


def first_turn(fields: Fields) -> tuple[Fields, int]:
  """Returns a row whose prompt is its first turn, and how many turns are left.

  The first item of a list `reference` is the answer to it.
  """
  turns = turns_of(fields)
  if not turns:
    return fields, 0
  fields = rated.without(fields, ("turns",)) | {"prompt": turns[0]}
  references = fields.get("reference")
  if isinstance(references, list) and references and "answer" not in fields:
    fields["answer"] = references[0]
  return fields, len(turns) - 1


def as_messages(fields: Fields, where: str) -> Fields:
  """Returns a row with its conversations as messages, in fields of `rows`.

  Args:
    fields: The row.
    where: File and line, for errors.

  Raises:
    UnusableError: It has a `history` that is no conversation, a reply that is a
      list of texts, or a conversation of lists of different lengths.
  """
  fields = _by_turns(fields)
  for name in _CONVERSATIONS:
    ours = "prompt" if "chosen" in fields else "messages"
    if name in fields and ours not in fields and "messages" not in fields:
      if ours == "prompt" and _is_whole(fields["chosen"]):
        continue  # The replies have it, too.
      talk = fields[name]
      fields = rated.without(fields, (name,)) | {ours: talk}
  fields = _of_texts(_of_trajectory(fields), where)
  if is_alpaca(fields):
    fields = _of_alpaca(fields, where)
  changed = {}
  for name, value in fields.items():
    if name in _TALKS:
      _check_lengths(name, value, where)
      talk = conversations.of(value)
      if talk is not value:
        changed[name] = talk
  fields = fields | changed if changed else fields
  return _of_transcript(_before_replies(fields))


def _before_replies(fields: Fields) -> Fields:
  """Returns a row whose messages end before the replies beside them.

  They are the prompt then.
  """
  told = any(name in fields for name in pairs.REPLIES)
  return as_prompt(fields) if told or rated.replies_of(fields)[0] else fields


def _check_lengths(name: str, value: Any, where: str) -> None:
  lengths = conversations.ragged(value)
  if lengths:
    sizes = ", ".join(f"{key!r} has {size}" for key, size in lengths.items())
    raise messages.error(
      where,
      name,
      f"is a conversation as lists of different lengths: {sizes}.",
      "in which a conversation is lists of different lengths",
    )


def _by_turns(fields: Fields) -> Fields:
  """Returns a row whose conversation is a list of texts, as one of messages.

  The user and the assistant say them by turns (LIMA; UltraChat's `data`).
  """
  for name in (*_CONVERSATIONS, _DATA):
    texts = fields.get(name)
    if name == _DATA and not _SAID.isdisjoint(fields):
      continue
    if not isinstance(texts, list) or not texts:
      continue
    if not all(isinstance(text, str) for text in texts):
      continue
    if not any(map(_SPEAKER.match, texts)):
      talk = [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(texts)
      ]
      ours = "messages" if name == _DATA else name
      return rated.without(fields, (name,)) | {ours: talk}
  return fields


def _of_transcript(fields: Fields) -> Fields:
  """Returns a row whose prompt is a transcript as messages.

  Its replies have a space before what is said, or the name of the assistant. A
  prompt of one turn is a transcript if they have that.
  """
  prompt = fields.get("prompt")
  if not isinstance(prompt, str):
    return fields
  talk = conversations.transcript(prompt)
  texts = pairs.texts_of(fields)
  after = {n: t.strip().removeprefix(_NAMED) for n, t in texts.items()}
  start, _, asked = prompt.partition("Human:")
  named = texts and all(t.strip().startswith(_NAMED) for t in texts.values())
  if not talk and named and not start.strip() and asked.strip():
    talk = [{"role": "user", "content": asked.strip()}]
  if not talk:
    return fields
  texts = {name: text.strip() for name, text in after.items()}
  return fields | texts | {"prompt": talk}


def _is_whole(reply: Any) -> bool:
  """Whether a reply is a conversation that has its prompt in it."""
  talk = conversations.of(reply)
  return (
    isinstance(talk, list)
    and len(talk) > 1
    and isinstance(talk[0], dict)
    and talk[0].get("role") in ("system", "user")
  )


def _of_trajectory(fields: Fields) -> Fields:
  """Returns a row whose only conversation is a `trajectory` (UltraInteract)."""
  talk = fields.get(_TRAJECTORY)
  if talk is None or not _SAID.isdisjoint(
    fields.keys() - {"chosen", "rejected"}
  ):
    return fields
  if not conversations.is_talk(talk):
    return fields
  fields = rated.without(fields, (_TRAJECTORY,))
  return fields | {"prompt" if "chosen" in fields else "messages": talk}


def _of_texts(fields: Fields, where: str) -> Fields:
  """Returns a row whose prompt is the one text of a list of texts.

  Where the list is a text (lmsys-arena), the replies beside it are such texts
  too; without it, a reply that is a list is an answer like others.

  Raises:
    UnusableError: A reply is a list of several.
  """
  given = fields.get("prompt")
  prompt = conversations.texts_in(given) if isinstance(given, str) else given
  if not isinstance(prompt, list) or not prompt:
    return fields
  if not all(isinstance(text, str) for text in prompt):
    return fields
  fields = fields | {"prompt": prompt[0] if len(prompt) == 1 else prompt}
  for name in pairs.REPLIES:
    reply = fields.get(name)
    if not isinstance(given, str) or not isinstance(reply, str):
      continue
    texts = conversations.texts_in(reply) or [reply]
    if len(texts) > 1:
      raise messages.error(
        where,
        name,
        f"is a list of {len(texts)} texts, {messages.found(texts)}, of which it"
        " is not clear who says them: give messages.",
        "in which a reply is a list of texts",
      )
    fields[name] = texts[0]
  return fields


def _of_alpaca(fields: Fields, where: str) -> Fields:
  """Returns an Alpaca row as a prompt and a response."""
  # Dolly calls the input a context.
  name = "input" if fields.get("input") else "context"
  instruction, given = fields["instruction"], fields.get(name, "")
  read = ("instruction", "input", name, "output", "history")
  rest = rated.without(fields, read)
  if "output" in fields:
    if "chosen" not in rest:
      _check_one_answer(fields, where)
    rest["response"] = fields["output"]
  if not isinstance(instruction, str):
    return rest | {"prompt": instruction}
  if isinstance(given, (int, float)) and not isinstance(given, bool):
    given = str(given)
  if not isinstance(given, str):
    raise messages.error(
      where,
      name,
      f"must be text beside an instruction, but is {messages.found(given)}.",
    )
  text = "\n\n".join(t for t in (instruction, given) if t.strip())
  history = fields.get("history")
  if not history:
    return rest | {"prompt": text}
  talk = _history(history, where)
  return rest | {"prompt": [*talk, {"role": "user", "content": text}]}


def _check_one_answer(fields: Fields, where: str) -> None:
  """Checks that an instruction has no second answer beside its `output`."""
  if fields.get("response", fields["output"]) != fields["output"]:
    raise messages.error(
      where,
      "output",
      "is another name for `response`, and both are here. Leave out what is not"
      " the answer: --config.data.ignore=\"('response',)\" or"
      " --config.data.ignore=\"('output',)\".",
      "which have two answers",
    )


def _history(history: Any, where: str) -> list[Any]:
  """Returns what was said before an instruction as messages."""
  talk = conversations.of(history)
  if isinstance(talk, list):
    if all(isinstance(turn, dict) for turn in talk):
      return talk
    if all(_is_exchange(turn) for turn in talk):
      return [
        {"role": role, "content": said}
        for turn in talk
        for role, said in zip(("user", "assistant"), turn, strict=True)
      ]
  raise messages.error(
    where,
    "history",
    "must be a list of pairs, what a user said and the answer, or of messages,"
    f" but is {messages.found(history)}.",
  )


def _is_exchange(turn: Any) -> bool:
  return (
    isinstance(turn, list)
    and len(turn) == 2
    and all(isinstance(said, str) for said in turn)
  )


def without_answer(fields: Fields) -> Fields:
  """Returns a row without a label that is no rating, but the right answer."""
  answered = any(name in fields for name in rated.RESPONSES)
  talk = fields.get("messages")
  if answered or (isinstance(talk, list) and is_answered(talk)):
    return fields
  return rated.without(fields, ("label",))


def as_prompt(fields: Fields) -> Fields:
  """Returns a conversation that ends with the user as a prompt.

  A `prompt` beside it must be a part of it.
  """
  talk = fields.get("messages")
  if not isinstance(talk, list) or not talk or is_answered(talk):
    return fields
  given = fields.get("prompt", [])
  if isinstance(given, str):
    given = [{"role": "user", "content": given}]
  if not isinstance(given, list) or not conversations.contains(talk, given):
    return fields
  return rated.without(fields, ("messages",)) | {"prompt": talk}


def is_answered(talk: list[Any]) -> bool:
  """Whether the assistant has the last word."""
  return (
    bool(talk)
    and isinstance(talk[-1], dict)
    and talk[-1].get("role") == "assistant"
  )
