"""What a row says around its messages: system message, tools, weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.sources.jsonl import keys, messages, refused


def added(
  talk: tuple[Message, ...], fields: Mapping[str, Any], where: str
) -> tuple[tuple[Message, ...], set[str]]:
  """Adds what columns of a row say around its messages.

  That is the system message, the tools, and the variables of the template.

  Args:
    talk: Messages of the row.
    fields: The columns of the row by name.
    where: File and line, for errors.

  Returns:
    The messages, of which the first has the tools and the variables as keys;
    and the names of the columns.

  Raises:
    UnusableError: A system message is no text, or there are two; the tools are
      no list of objects, or the variables no object.
    ValueError: A variable cannot be one.
  """
  if fields.keys().isdisjoint(keys.CONTEXT):
    return talk, set()
  used = set()
  for name in refused.SYSTEM:
    text = keys.text_of(fields.get(name), _refusal_of(name, where))
    if name in fields:
      used.add(name)
    if refused.is_absent(text):
      continue
    if not isinstance(text, str):
      raise messages.error(
        where, name, f"must be text, but is {messages.found(text)}."
      )
    if talk[0]["role"] != "system":
      talk = ({"role": "system", "content": text}, *talk)
    elif talk[0]["content"] != text:
      raise messages.error(
        where,
        name,
        "is another system message than the one of the messages. If that one is"
        f" meant, leave this out: --config.data.ignore=\"('{name}',)\".",
        "which have two system messages",
      )
  tools, columns = keys.tools_of(fields, _refusal(where))
  if tools:
    talk = ({**talk[0], "tools": tools}, *talk[1:])
  variables = keys.variables_of(fields, _refusal(where))
  if variables:
    talk = ({**talk[0], records.VARIABLES: variables}, *talk[1:])
  return talk, used | columns | ({records.VARIABLES} & fields.keys())


def reply(message: Message, where: str) -> records.Reply:
  """Returns the reply of a pair or of a row with a label.

  Raises:
    UnusableError: Its weight is 0.
  """
  if not records.is_target(message):
    raise messages.error(
      where,
      "weight",
      "is 0 for a reply, so there is nothing to learn of it.",
      "in which a reply has the weight 0",
    )
  return records.reply_of(message)


def check_targets(turns: Sequence[Message], field: str, where: str) -> None:
  """Checks that not all answers are masked, and that no earlier one is empty.

  Args:
    turns: The messages from the first answer on.
    field: Name of the field that they are in, for errors.
    where: File and line, for errors.

  Raises:
    UnusableError: They are, or one is.
  """
  answers = [turn for turn in turns if turn["role"] == "assistant"]
  if not any(map(records.is_target, answers)):
    raise messages.error(
      where,
      field,
      "the weight of every answer is 0, so there is nothing to learn.",
      "in which every answer has the weight 0",
    )
  for answer in answers[:-1]:
    text = answer["content"] or records.text_of(records.reply_of(answer))
    if not text or text.isspace():
      raise messages.error(
        where,
        field,
        "has an answer without text before the last one.",
        "in which an answer before the last is empty",
      )


def check_ignored(name: str, value: Any, where: str, learned: bool) -> None:
  """Refuses a column that may not be left out.

  Args:
    name: Name of the column.
    value: The value of the row in that column.
    where: File and line, for errors.
    learned: Whether the answer in the row is learned; if it is not, only what
      the model should see of the prompt is refused.

  Raises:
    ValueError: It would change what the row means.
  """
  is_weight = refused.plain_name(name) in refused.WEIGHTS
  if refused.is_seen(name, value) or (
    learned and not (is_weight and refused.weight_of(value) == 1)
  ):
    refused.check_ignored(name, value, _refusal(where))


def _refusal_of(name: str, where: str) -> refused.Complain:
  """Returns what complains of a column, whatever part of it is wrong."""
  return lambda _, problem: _refusal(where)(name, problem)


def _refusal(where: str) -> refused.Complain:
  def refusal(field: str, problem: str) -> ValueError:
    return ValueError(f"{where}: field {field!r}: {problem}")

  return refusal
