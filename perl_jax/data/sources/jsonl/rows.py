"""Turns one row of a user's file into a record.

`SHAPES` has an entry for every kind of row; `files` describes them. Every error
names the line, the field, the value found there and how to repair it.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from perl_jax import names
from perl_jax.data import splits
from perl_jax.data.records import (
  Demonstration,
  Labelled,
  Message,
  Preference,
  Prompt,
  Record,
  Reply,
  reply_of,
)
from perl_jax.data.sources.jsonl import context, described, keys, rated
from perl_jax.data.sources.jsonl import messages as messages_lib
from perl_jax.data.sources.jsonl.messages import found, listed
from perl_jax.data.unusable import UnusableError

# Why a row with another label is left out.
WRONG_LABEL = "whose label is neither 0 nor 1"


@dataclasses.dataclass(frozen=True)
class Shape:
  """The fields of one kind of row, and the record made of them.

  Attributes:
    fields: Names of the fields, as errors show them.
    marks: Fields by which the shape is recognised. A row with marks of several
      shapes has the one that comes first in `SHAPES`.
    record: Function that makes the record of a row.
    replies: Function that returns the replies of a record that must be neither
      empty nor equal.
  """

  fields: str
  marks: tuple[str, ...]
  record: Callable[["_Row"], Record]
  replies: Callable[[Any], tuple[Reply, ...]]


class _Row:
  """Reads the fields of one row; every error names the line and the field."""

  def __init__(
    self, fields: Mapping[str, Any], where: str, ignore: Collection[str] = ()
  ):
    self._fields = {k: v for k, v in fields.items() if v is not None}
    self._where = where
    self._ignore = ignore
    self._used: set[str] = set()
    self._further: set[str] = set()

  def preference(self) -> Preference:
    prompt, chosen, rejected = self.pair()
    prompt = self.in_context(prompt)
    group = self.group(prompt)
    return Preference(
      self._where, group, prompt, chosen, rejected, self.subset()
    )

  def labelled(self) -> Labelled:
    messages = self.in_context(self.conversation())
    *before, last = messages
    group, reply = self.group(messages), context.reply(last, self._where)
    return Labelled(
      self._where, group, tuple(before), reply, self.label(), self.subset()
    )

  def demonstration(self) -> Demonstration:
    messages = self.in_context(self.conversation())
    given = self.given(messages)
    context.check_targets(messages[given:], self._where)
    group = self.group(messages)
    return Demonstration(self._where, group, messages[:given], messages[given:])

  def prompt_only(self) -> Prompt:
    prompt = self.in_context(self.prompt())
    return Prompt(self._where, self.group(prompt), prompt, None)

  def error(self, field: str, problem: str, reason: str = "") -> ValueError:
    return messages_lib.error(self._where, field, problem, reason)

  def in_context(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Returns messages with the row's system message and tools."""
    messages, used = context.added(messages, self._fields, self._where)
    self._used |= used
    return messages

  def get(self, field: str) -> Any:
    if field not in self._fields:
      columns = described.suggested(self._fields)
      near = names.nearest(field, self._fields)
      hint = f" Is {near!r} a slip?" if near else ""
      hint = f" {described.renamed(columns)}" if columns else hint
      raise self.error(
        field,
        f"missing: this row has {listed(self._fields)}. The shapes are"
        f" {_all_shapes()}.{hint}",
      )
    self._used.add(field)
    return self._fields[field]

  def ignored(self, check: bool) -> set[str]:
    """Returns the names of the fields and keys that are left out.

    Args:
      check: Whether one that would change what is learned is an error.
    """
    others = self._fields.keys() - self._used
    for name in others:
      context.check_ignored(name, self._fields[name], self._where, check)
    return self._further | others

  def group(self, messages: Sequence[Message]) -> str:
    """Returns the key of the first user turn, or of the first text."""
    texts = (splits.text_key(message["content"]) for message in messages)
    return splits.first_user_turn(messages) or next(
      filter(None, texts), self._where
    )

  def subset(self) -> str:
    """Returns the part of a benchmark that the row belongs to, or ""."""
    for name in keys.SUBSETS:
      if name in self._fields:
        return str(self.get(name))
    return ""

  def messages(self, field: str, value: Any) -> tuple[Message, ...]:
    """Checks a list of role/content messages, and returns it."""
    messages, further = messages_lib.read(
      value, field, self._where, self._ignore
    )
    if further:
      self._further |= {f"{field}.{key}" for key in further}
    return messages

  def prompt(self) -> tuple[Message, ...]:
    value = self.get("prompt")
    if isinstance(value, str):
      if not value.strip():
        raise self.error(
          "prompt",
          "is empty: there is nothing to answer.",
          "in which the user says nothing",
        )
      messages_lib.check_text(value, "prompt", self._where)
      return ({"role": "user", "content": value},)
    if not isinstance(value, list):
      raise self.error(
        "prompt", f"must be text or a list of messages, not {found(value)}."
      )
    messages = self.messages("prompt", value)
    if messages[-1]["role"] == "assistant":
      raise self.error(
        "prompt",
        "ends with a message of the assistant: leave the answer to `response`"
        " (or `chosen` and `rejected`).",
      )
    return messages

  def conversation(self) -> tuple[Message, ...]:
    """Returns `messages`, or prompt and response; the assistant ends it."""
    if "messages" in self._fields:
      messages = self.messages("messages", self.get("messages"))
      self._check_last("messages", messages)
      if len(messages) < 2:
        raise self.error(
          "messages",
          "has an answer, but nothing before it.",
          "in which nothing is before the answer",
        )
      return messages
    if "response" in self._fields and "completion" in self._fields:
      raise self.error(
        "completion", "is another name for `response`, and both are here."
      )
    field = "completion" if "completion" in self._fields else "response"
    reply = self.get(field)
    prompt = self.prompt()
    return (*prompt, self._reply(field, reply, prompt))

  def given(self, messages: Sequence[Message]) -> int:
    """Returns the number of messages before the first target."""
    if "messages" not in self._fields:
      return len(messages) - 1
    return next(
      n for n, message in enumerate(messages) if message["role"] == "assistant"
    )

  def label(self) -> float:
    value = self.get("label")
    label = rated.label_of(value)
    if label is None:
      raise self.error(
        "label",
        f"must be 0, 1, true or false, but is {found(value)}. If"
        " labels are scores, say from which one on a response is good:"
        " --config.data.threshold=0.5",
        WRONG_LABEL,
      )
    return label

  def pair(self) -> tuple[tuple[Message, ...], Reply, Reply]:
    """Returns prompt, chosen and rejected."""
    chosen, rejected = self.get("chosen"), self.get("rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
      raise self.error(
        "rejected",
        f"is {found(rejected)}, but `chosen` is {found(chosen)}: both must be"
        " text or both messages.",
      )
    prompt = self.prompt()
    good = self._reply("chosen", chosen, prompt)
    bad = self._reply("rejected", rejected, prompt)
    return (
      prompt,
      context.reply(good, self._where),
      context.reply(bad, self._where),
    )

  def _reply(
    self, field: str, value: Any, prompt: tuple[Message, ...]
  ) -> Message:
    """Returns the reply of text, or of messages that may repeat the prompt."""
    if isinstance(value, str):
      messages_lib.check_text(value, field, self._where)
      return {"role": "assistant", "content": value}
    if not isinstance(value, list):
      raise self.error(
        field, f"must be text or a list of messages, not {found(value)}."
      )
    messages = self.messages(field, value)
    self._check_last(field, messages)
    if len(messages) > 1 and messages[:-1] != prompt:
      raise self.error(
        field,
        f"has {len(messages)} messages that are not the prompt"
        f" ({len(prompt)} messages) and one answer.",
        "whose replies do not both follow the prompt",
      )
    return messages[-1]

  def _check_last(self, field: str, messages: Sequence[Message]) -> None:
    if messages[-1]["role"] != "assistant":
      raise self.error(
        field,
        f"the last message is of the {messages[-1]['role']}, but must be the"
        " assistant's answer. Add it, or give what is before as `prompt`.",
        "which do not end with an answer",
      )


# By the kind of record that a row of the shape holds.
SHAPES = {
  "preferences": Shape(
    fields="prompt/chosen/rejected",
    marks=("chosen", "rejected"),
    record=_Row.preference,
    replies=lambda record: (record.chosen, record.rejected),
  ),
  "labelled": Shape(
    fields="prompt/response/label or messages/label",
    marks=("label",),
    record=_Row.labelled,
    replies=lambda record: (record.response,),
  ),
  "demonstrations": Shape(
    fields="prompt/response or messages",
    marks=("response", "completion", "messages"),
    record=_Row.demonstration,
    replies=lambda record: (reply_of(record.turns[-1]),),
  ),
  "prompts": Shape(
    fields="prompt",
    marks=("prompt",),
    record=_Row.prompt_only,
    replies=lambda record: (),
  ),
}

# Shapes by the field that marks them, the first that counts first.
_MARKS = {mark: name for name, shape in SHAPES.items() for mark in shape.marks}


def shape_of(fields: Mapping[str, Any], where: str) -> str:
  """Returns the shape of a row, a key of `SHAPES`, by its fields.

  Raises:
    UnusableError: The row has no field of any shape.
  """
  for mark, name in _MARKS.items():
    if fields.get(mark) is not None:
      return name
  columns = described.suggested(fields)
  near = [
    f"{name!r} for {match!r}"
    for name in fields
    if not columns and (match := names.nearest(name, _MARKS))
  ]
  raise UnusableError(
    f"{where}: no field to learn from: it has {listed(fields)}. The shapes are"
    f" {_all_shapes()}."
    + (f" Is {' and '.join(near)} a slip?" if near else "")
    + f" {described.renamed(columns or {'question': 'prompt'})}",
    "which have no field to learn from",
  )


def parse(
  fields: Mapping[str, Any],
  where: str,
  shape: str,
  ignore: Collection[str] = (),
  check: bool = True,
) -> tuple[Record, set[str]]:
  """Turns a row into the record of its shape.

  Args:
    fields: The row. A field that is null is absent.
    where: File and line, which become the id and are named in errors.
    shape: A key of `SHAPES`.
    ignore: Keys of messages to leave out whatever they mean.
    check: Whether all fields that are left out are checked. Where a reward
      function is given the whole row, only those that a model should see are.

  Returns the record, and the names of the further fields and keys of messages.

  Raises:
    UnusableError: A field is missing or has a wrong value.
    ValueError: A field or key would change the meaning if it were left out.
  """
  row = _Row(fields, where, ignore)
  record = SHAPES[shape].record(row)
  return record, row.ignored(check)


def _all_shapes() -> str:
  """Returns the fields of all shapes, for errors."""
  return "; ".join(shape.fields for shape in SHAPES.values())
