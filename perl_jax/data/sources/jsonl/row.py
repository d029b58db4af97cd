"""Reads the fields of one row, and makes the record of them.

Every error names the line, the field, the value found there and how to repair
it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from perl_jax import names
from perl_jax.data import splits
from perl_jax.data.records import (
  Demonstration,
  Labelled,
  Message,
  Preference,
  Prompt,
  Reply,
  Text,
)
from perl_jax.data.sources.jsonl import (
  context,
  described,
  keys,
  mistaken,
  rated,
)
from perl_jax.data.sources.jsonl import messages as messages_lib
from perl_jax.data.sources.jsonl.messages import found, listed

# Why a row with another label is left out.
WRONG_LABEL = "whose label is neither 0 nor 1"
# Who may speak after whom where a completion follows a prompt.
_AFTER = {
  "assistant": ("system", "user", "tool"),
  "user": ("system", "assistant"),
  "tool": ("assistant", "tool"),
}


class Row:
  """Reads the fields of one row; every error names the line and the field."""

  def __init__(
    self,
    fields: Mapping[str, Any],
    where: str,
    ignore: Collection[str] = (),
    shapes: str = "",
  ) -> None:
    """Takes a row.

    Args:
      fields: The row. A field that is null is absent.
      where: File and line, which become the id.
      ignore: Keys of messages to leave out whatever they mean.
      shapes: The fields of all shapes, for errors.
    """
    self._fields = {k: v for k, v in fields.items() if v is not None}
    self._where = where
    self._ignore = ignore
    self._shapes = shapes
    self._used: set[str] = set()
    self._further: set[str] = set()

  def preference(self) -> Preference:
    """Returns the pair of the row."""
    prompt, chosen, rejected = self.pair()
    prompt = self.in_context(prompt)
    group = self.group(prompt)
    return Preference(
      self._where, group, prompt, chosen, rejected, self.subset()
    )

  def labelled(self) -> Labelled:
    """Returns the response of the row and its label."""
    messages = self.in_context(self.conversation()[0])
    *before, last = messages
    group, reply = self.group(messages), context.reply(last, self._where)
    return Labelled(
      self._where, group, tuple(before), reply, self.label(), self.subset()
    )

  def demonstration(self) -> Demonstration:
    """Returns the dialogue of the row."""
    talk, given = self.conversation()
    messages = self.in_context(talk)
    given += len(messages) - len(talk)
    context.check_targets(messages[given:], self._answers(), self._where)
    group = self.group(messages)
    return Demonstration(self._where, group, messages[:given], messages[given:])

  def text(self) -> Text:
    """Returns the text of the row."""
    text = self.get("text")
    mistaken.check_text(self._fields, self._where)
    if not isinstance(text, str):
      raise self.error("text", f"must be text, but is {found(text)}.")
    messages_lib.check_text(text, "text", self._where)
    return Text(self._where, splits.text_key(text) or self._where, text)

  def prompt_only(self) -> Prompt:
    """Returns the prompt of the row."""
    prompt = self.in_context(self.prompt())
    return Prompt(self._where, self.group(prompt), prompt, None)

  def error(self, field: str, problem: str, reason: str = "") -> ValueError:
    """Returns the error that a field has a problem; see `messages.error`."""
    return messages_lib.error(self._where, field, problem, reason)

  def in_context(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Returns messages with the row's system message and tools."""
    messages, used = context.added(messages, self._fields, self._where)
    self._used |= used
    return messages

  def get(self, field: str) -> Any:
    """Returns a field, or says what is there instead of it."""
    if field not in self._fields:
      columns = described.suggested(self._fields)
      near = names.nearest(field, self._fields)
      hint = f" Is {near!r} a slip?" if near else ""
      hint = f" {described.renamed(columns)}" if columns else hint
      raise self.error(
        field,
        f"missing: this row has {listed(self._fields)}. The shapes are"
        f" {self._shapes}.{hint}",
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

  def prompt(self, answered: bool = False) -> tuple[Message, ...]:
    """Returns the prompt; `answered` says that an answer may end it."""
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
    if len(value) > 1 and all(isinstance(turn, str) for turn in value):
      raise self.error(
        "prompt",
        f"is a list of texts, {found(value)}, and does not say who says them:"
        " give messages. If all are turns of a user (MT-Bench), the first is"
        f" the prompt with {described.option({'prompt': 'turns'})}.",
      )
    messages = self.messages("prompt", value)
    if messages[-1]["role"] == "assistant" and not answered:
      raise self._answered()
    return messages

  def conversation(self) -> tuple[tuple[Message, ...], int]:
    """Returns a conversation that the assistant ends, and how much is given.

    It is `messages`, of which all answers may be targets, or the prompt and the
    messages of a response.
    """
    field = self._answers()
    if field == "messages":
      messages = self.messages("messages", self.get("messages"))
      self._check_last("messages", messages)
      if len(messages) < 2:
        raise self.error(
          "messages",
          "has an answer, but nothing before it.",
          "in which nothing is before the answer",
        )
      return messages, self._first_answer(messages)
    if "response" in self._fields and "completion" in self._fields:
      raise self.error(
        "completion", "is another name for `response`, and both are here."
      )
    value = self.get(field)
    prompt = self.prompt(answered=True)
    turns = self._turns(field, value, prompt)
    self._check_follows(field, turns, prompt)
    return (*prompt, *turns), len(prompt)

  def _first_answer(self, messages: Sequence[Message]) -> int:
    """Returns the number of the first answer that answers something."""
    for number, message in enumerate(messages):
      asked = any(m["role"] != "assistant" for m in messages[:number])
      if message["role"] == "assistant" and asked:
        return number
    raise self.error(
      "messages",
      "has answers, but nothing before them.",
      "in which nothing is before the answer",
    )

  def label(self) -> float:
    """Returns the label, 1.0 or 0.0."""
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

  def _answers(self) -> str:
    """Returns the name of the field that has the answers."""
    names_of = ("messages", "completion")
    return next((n for n in names_of if n in self._fields), "response")

  def _reply(
    self, field: str, value: Any, prompt: tuple[Message, ...]
  ) -> Message:
    """Returns the one reply of text, or of messages."""
    turns = self._turns(field, value, prompt)
    if len(turns) > 1:
      raise self.error(
        field,
        f"has {len(value)} messages that are not the prompt"
        f" ({len(prompt)} messages) and one answer.",
        "whose replies do not both follow the prompt",
      )
    return turns[0]

  def _turns(
    self, field: str, value: Any, prompt: tuple[Message, ...]
  ) -> tuple[Message, ...]:
    """Returns what follows the prompt, as text or messages that may repeat it.

    The assistant ends it.
    """
    if isinstance(value, str):
      messages_lib.check_text(value, field, self._where)
      return ({"role": "assistant", "content": value},)
    if not isinstance(value, list):
      raise self.error(
        field, f"must be text or a list of messages, not {found(value)}."
      )
    if len(value) > 1 and all(isinstance(reply, str) for reply in value):
      raise self.error(
        field,
        f"is a list of {len(value)} texts, {found(value)}, and must be one text"
        " or messages. If one of them is better, give it as `chosen` and the"
        " others as `rejected`.",
      )
    turns = self.messages(field, value)
    self._check_last(field, turns)
    repeats = turns[: len(prompt)] == prompt
    return turns[len(prompt) :] or turns if repeats else turns

  def _check_follows(
    self, field: str, turns: Sequence[Message], prompt: Sequence[Message]
  ) -> None:
    """Checks that a completion can follow the prompt, by who speaks."""
    last, first = prompt[-1]["role"], turns[0]["role"]
    if last in _AFTER.get(first, ()):
      return
    if last == first == "assistant":
      raise self._answered()
    raise self.error(
      field,
      f"begins with a message of the {first}, and `prompt` ends with one of the"
      f" {last}: give what follows the prompt, or the whole conversation as"
      " `messages`.",
      "whose response does not follow the prompt",
    )

  def _answered(self) -> ValueError:
    return self.error(
      "prompt",
      "ends with a message of the assistant: leave the answer to `response`"
      " (or `chosen` and `rejected`).",
    )

  def _check_last(self, field: str, messages: Sequence[Message]) -> None:
    if messages[-1]["role"] == "assistant":
      return
    way_out = "Add it, or give what is before as `prompt`."
    columns = described.answers_in(self._fields)
    if columns and field == "messages":
      way_out += f" {described.renamed(columns)}"
    raise self.error(
      field,
      f"the last message is of the {messages[-1]['role']}, but must be the"
      f" assistant's answer. {way_out}",
      "which do not end with an answer",
    )
