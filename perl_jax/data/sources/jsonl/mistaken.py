"""Refuses rows that would be taken for others, or for none.

Two texts without a prompt have the words that both begin with as one. Where the
prompt is in a column that is not read, these are only how answers begin. A text
beside the name of a role is one message of a conversation.
"""

import re
from collections.abc import Sequence
from typing import Any

from perl_jax.data.sources.jsonl import (
  conversations,
  described,
  habits,
  keys,
  messages,
  pairs,
)

Fields = dict[str, Any]
# Columns with texts that are read beside a pair.
_READ = {*pairs.SIDES, *keys.CONTEXT, *keys.SUBSETS}
_WORD = re.compile(r"[^\W\d_]{2,}")


def check_replies(fields: Fields, where: str) -> None:
  """Checks that no side of a pair is an empty list, or names a column.

  Raises:
    UnusableError: One is empty, and the other is a list of replies; or both are
      names of columns beside them, which hold the replies.
  """
  first, second = (fields.get(side) for side in pairs.SIDES)
  if first != second and all(_is_column(fields, s) for s in (first, second)):
    raise messages.error(
      where,
      "chosen",
      f"is {first!r}, and `rejected` is {second!r}, which are names of columns"
      " beside them. Write the replies themselves.",
      "whose replies are names of columns",
    )
  if not pairs.is_many(fields):
    return
  for side in pairs.SIDES:
    if fields.get(side) == []:
      raise messages.error(where, side, "has no reply, but an empty list.")


def check_prompt(fields: Fields, where: str) -> None:
  """Checks that the prompt of two texts is not in a column of another name.

  Raises:
    UnusableError: A column is known for one, or is a conversation.
  """
  if not _begin_alike(fields):
    return
  columns = described.suggested(fields)
  if "prompt" in columns.values():
    raise messages.error(
      where,
      "prompt",
      f"missing: this row has {messages.listed(fields)}."
      f" {described.renamed(columns)}",
    )
  for column, ours in described.conversation_in(fields).items():
    problem = f"missing, and {column!r} is a conversation"
    if ours == "prompt":
      problem += f". {_ways_out(column)}"
    else:
      problem += (
        f" that ends with an answer. Give what is before it as `prompt`, or"
        f" leave {column!r} out with --config.data.ignore=\"('{column}',)\" if"
        " it is not what was asked."
      )
    raise messages.error(where, "prompt", problem)


def check_asked(fields: Fields, where: str) -> None:
  """Checks that replies with scores have a prompt beside them.

  Two of them may begin with the same words, which are not what was asked.

  Args:
    fields: A row, with `chosen` and `rejected` if two replies are compared.
    where: File and line, for errors.

  Raises:
    UnusableError: There is none, and the replies are no whole conversations.
  """
  sides = [fields.get(side) for side in pairs.SIDES]
  whole = all(
    conversations.is_transcript(side)
    or (isinstance(side, list) and bool(side) and not _is_answer(side[0]))
    for side in sides
  )
  if "prompt" in fields or whole:
    return
  columns = described.suggested(fields) or described.conversation_in(fields)
  columns = {k: v for k, v in columns.items() if v == "prompt"}
  beside = [name for name in fields if name not in pairs.SIDES]
  named = described.renamed(columns or {"YOUR_PROMPT": "prompt"})
  raise messages.error(
    where,
    "prompt",
    "missing: replies with scores need what was asked, and beside them this row"
    f" has {messages.listed(beside)}. {named}",
    "which have no prompt",
  )


def check_words(rows: Sequence[Fields], name: str) -> None:
  """Checks that no column beside pairs of texts looks like their prompts.

  That is a column with a text of several words in nearly every row, most of
  which are different.

  Args:
    rows: The first rows of a file, with our names.
    name: Name of the file, for errors.

  Raises:
    ValueError: There is one.
  """
  rows = [row for row in rows if _begin_alike(row)]
  for column in dict.fromkeys(column for row in rows for column in row):
    values = [row.get(column) for row in rows]
    texts = list(filter(_is_said, values))
    differ = 2 * len(set(texts)) > len(texts)
    if (
      column in _READ
      or not differ
      or not habits.nearly_all(list(map(_is_said, values)))
    ):
      continue
    raise ValueError(
      f"{name}: field 'prompt' is missing, and {column!r} is a text in nearly"
      f" every row, such as {messages.found(texts[0])}: the words that `chosen`"
      f" and `rejected` begin with may not be all that was asked."
      f" {_ways_out(column)}"
    )


def check_text(fields: Fields, where: str) -> None:
  """Checks that a text is not one message of a conversation (OpenAssistant).

  All of a text is learned, and what a user says should not be.

  Raises:
    UnusableError: A column beside it says who speaks, or what it follows.
  """
  beside = [
    name
    for name in conversations.WHO
    if conversations.is_speaker(fields.get(name))
  ]
  beside += [n for n in ("parent_id",) if fields.get(n) is not None or beside]
  if not beside:
    return
  raise messages.error(
    where,
    "text",
    f"is one message of a conversation, as {beside[0]!r} beside it says"
    f" ({messages.found(fields[beside[0]])}): put the messages of each"
    " conversation into one row, as `messages`. To learn every text as it is,"
    " whoever says it, leave out what is beside it:"
    f' --config.data.ignore="{(*beside,)}".',
    "which are single messages",
  )


def _is_column(fields: Fields, side: Any) -> bool:
  return isinstance(side, str) and bool(side) and bool(fields.get(side))


def _is_answer(message: Any) -> bool:
  return isinstance(message, dict) and message.get("role") == "assistant"


def _begin_alike(fields: Fields) -> bool:
  """Whether words that two texts share would be taken for their prompt."""
  sides = [fields.get(side) for side in pairs.SIDES]
  if "prompt" in fields or not all(isinstance(side, str) for side in sides):
    return False
  return not all(map(conversations.is_transcript, sides))


def _is_said(value: Any) -> bool:
  """Whether a value is a text of several words, and no name, id or date."""
  if not isinstance(value, str):
    return False
  # Chinese and Japanese have no spaces between words.
  spaced = len(value.split()) > 1 and len(_WORD.findall(value)) > 1
  return spaced or (not value.isascii() and len(value) > 3)


def _ways_out(column: str) -> str:
  return (
    f"{described.renamed({column: 'prompt'})} If it is not the prompt, leave it"
    f" out with --config.data.ignore=\"('{column}',)\"."
  )
