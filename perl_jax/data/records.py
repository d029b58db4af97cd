"""Records: the rows that every data source yields, whatever its format.

A source (TFDS builder, JSONL file, generator) turns its rows into the records
defined here, and everything after it (tokenisation, batching, evaluation) reads
only these. Every record has an `id`, which names the row in error messages, and
a `group`: rows of one group overlap in content and must stay on one side of a
split. Prompts are sequences of messages.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

# {"role": "system" | "user" | "assistant" | "tool", "content": str}
# Messages may have further keys, which the chat template renders: "tool_calls",
# "tool_call_id", "name", "reasoning_content", and on the first one "tools" and
# the variables of the chat template. An assistant's message with "weight": 0 is
# not a target. One that says nothing besides its calls has `calls_text` as
# content, for whoever reads texts alone.
Message = dict[str, Any]
VARIABLES = "chat_template_kwargs"
# The text of a response, or a message of the assistant with such keys.
Reply = str | Message
# Keys of a message whose reply is its text.
_NO_MORE_THAN_TEXT = {"role", "content", "weight", "tools", VARIABLES}
# Keys of the first message that are about all of them.
_AROUND = ("tools", VARIABLES)


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A dialogue to imitate, with the loss on the assistant messages of `turns`.

  Attributes:
    id: Name of the row in error messages.
    group: Key by which rows are split.
    prompt: Messages that are given and carry no loss; may be empty.
    turns: Messages that follow; every assistant message is a target.
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  turns: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Text:
  """A text to learn as it is, without a chat template.

  Attributes:
    id: Name of the row in error messages.
    group: Key by which rows are split.
    text: All of it is a target.
  """

  id: str
  group: str
  text: str


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two responses to one prompt, of which a rater preferred `chosen`.

  `subset` is the part of a benchmark that the row belongs to, or "".
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  chosen: Reply
  rejected: Reply
  subset: str = ""


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A response with a binary label: 1.0 for good, 0.0 for bad.

  `subset` is the part of a benchmark that the row belongs to, or "".
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  response: Reply
  label: float
  subset: str = ""


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A context to respond to.

  Attributes:
    id: Name of the row in error messages.
    group: Key by which rows are split.
    prompt: The messages to respond to.
    reference: A response by a human, or the right one; None if there is none.
    fields: The unchanged row of a user's file, which reward functions receive;
      empty for other sources.
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  reference: str | None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Candidates:
  """Responses to one prompt, which a reward model scores.

  Attributes:
    id: Name of the row in error messages.
    group: Key by which rows are split.
    prompt: The messages before every response.
    responses: The responses.
    sides: What each of them is: "chosen", "rejected" or "response".
    listed: Whether the row has lists of them, even of one.
    label: 1.0 or 0.0 of a row with a response and a label, else None.
    subset: The part of a benchmark that the row belongs to, or "".
    fields: The unchanged row of a user's file; empty for other sources.
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  responses: tuple[Reply, ...]
  sides: tuple[str, ...]
  listed: bool = False
  label: float | None = None
  subset: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Record = Demonstration | Text | Preference | Labelled | Prompt | Candidates


@dataclasses.dataclass(frozen=True)
class Splits:
  """Training and validation rows of one source.

  Attributes:
    train: Training rows.
    validation: Validation rows; their groups are not those of `train`.
    counts: How many rows were read, repaired, dropped or irregular, by reason.
    notes: What else to say of the rows, once, in the log.
    shapes: What the rows of a user's files are, for the log.
  """

  train: Sequence[Record]
  validation: Sequence[Record]
  counts: dict[str, int]
  notes: tuple[str, ...] = ()
  shapes: tuple[str, ...] = ()


def reply_of(message: Message) -> Reply:
  """Returns the text of an assistant's message, or itself if it has more."""
  if message.keys() <= _NO_MORE_THAN_TEXT:
    return message["content"]
  return {k: v for k, v in message.items() if k not in ("weight", *_AROUND)}


def around(message: Message) -> dict[str, Any]:
  """Returns what the first message has that is about the whole conversation."""
  return {key: message[key] for key in _AROUND if key in message}


def candidates_of(
  record: Demonstration | Preference | Labelled,
  fields: Mapping[str, Any] | None = None,
) -> Candidates:
  """Returns the responses of a record; of a dialogue the last message.

  Args:
    record: A record with responses.
    fields: The row of a user's file that it was made of, if it was.
  """
  prompt, label = record.prompt, None
  if isinstance(record, Preference):
    responses, sides = (record.chosen, record.rejected), ("chosen", "rejected")
  elif isinstance(record, Labelled):
    responses, sides, label = (record.response,), ("response",), record.label
  else:
    *before, last = record.prompt + record.turns
    prompt, responses, sides = tuple(before), (reply_of(last),), ("response",)
  return Candidates(
    record.id,
    record.group,
    prompt,
    responses,
    sides,
    label=label,
    subset=getattr(record, "subset", ""),
    fields=fields or {},
  )


def is_target(message: Message) -> bool:
  """Whether a message of a dialogue to imitate is learned."""
  return message["role"] == "assistant" and message.get("weight", 1) != 0


def calls_text(message: Message) -> str:
  """Returns the tool calls of a message as JSON; "" if it has none."""
  calls = message.get("tool_calls")
  return json.dumps(calls, ensure_ascii=False) if calls else ""


def said(message: Message) -> str:
  """Returns what a message says besides its tool calls."""
  calls = calls_text(message)
  return "" if calls and message["content"] == calls else message["content"]


def text_of(reply: Reply) -> str:
  """Returns the text of a reply, with its tool calls as JSON."""
  if isinstance(reply, str):
    return reply
  return "\n".join(filter(None, [said(reply), calls_text(reply)]))
