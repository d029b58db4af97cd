"""What nearly all rows of a file do, which no row says by itself.

A reply may begin with the words of its prompt, and may be the text of a list,
such as '["yes"]'. Where nearly all rows of a file have such replies, their
writer put the prompt or the brackets there, and no model should learn them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from perl_jax.data.sources.jsonl import conversations, pairs

Fields = dict[str, Any]
# How many rows of a file say what all of them do.
FIRST = 100
# Fewer rows say nothing of others.
_FEW = 3
_REPLIES = (*pairs.REPLIES, "output")
# What was done to a row, for the log.
REPEATED = "have replies that begin with the prompt, which is left out of them"
LISTED = (
  "have replies that are the text of a list of one text, which alone is read;"
  " to learn the brackets too, give replies as messages"
)


class Habits(NamedTuple):
  """What is done to the rows of a file.

  Attributes:
    repeats: Whether the prompt is left out where a reply begins with it.
    lists: Whether the text is read of a reply that is a list of one.
  """

  repeats: bool = False
  lists: bool = False

  def applied(self, fields: Fields, counts: Counter[str]) -> Fields:
    """Returns a row with its replies as they are meant.

    Args:
      fields: A row with our names.
      counts: How many rows were changed, by what was done; updated in place.
    """
    if self.lists:
      fields = _changed(fields, _only_text, LISTED, counts)
    if self.repeats:
      prompt = _prompt_of(fields)

      def without_prompt(reply: str) -> str:
        return _after(prompt, reply) or reply

      fields = _changed(fields, without_prompt, REPEATED, counts)
    return fields


def of(rows: Sequence[Fields]) -> Habits:
  """Returns what nearly all of the first rows of a file do."""
  said = [row for row in rows if _replies_of(row)]
  repeats = lists = False
  if len(said) >= _FEW:
    lists = nearly_all(
      [all(map(_only_text, _replies_of(row).values())) for row in said]
    )
    repeats = nearly_all(
      [
        all(_after(_prompt_of(row), r) for r in _replies_of(row).values())
        for row in said
      ]
    )
  return Habits(repeats, lists)


def nearly_all(flags: Sequence[Any]) -> bool:
  """Whether nine of ten are true."""
  return sum(map(bool, flags)) >= 0.9 * len(flags)


def _changed(
  fields: Fields,
  change: Callable[[str], str],
  what: str,
  counts: Counter[str],
) -> Fields:
  replies = _replies_of(fields)
  found = {name: change(text) or text for name, text in replies.items()}
  if found == replies:
    return fields
  counts[what] += 1
  return fields | found


def _replies_of(fields: Fields) -> dict[str, str]:
  """Returns the replies of a row that are texts, but no pair of transcripts."""
  found = {
    name: fields[name]
    for name in _REPLIES
    if isinstance(fields.get(name), str) and fields[name].strip()
  }
  sides = [found.get(side) for side in pairs.SIDES]
  return {} if all(map(conversations.is_transcript, sides)) else found


def _prompt_of(fields: Fields) -> str:
  """Returns the text that a row asks, "" if it is none by itself."""
  prompt = fields.get("prompt")
  if prompt is None and not (fields.get("input") or fields.get("context")):
    prompt = fields.get("instruction")
  return prompt.strip() if isinstance(prompt, str) else ""


def _after(prompt: str, reply: str) -> str:
  """Returns what a reply says after a prompt that it begins with, or ""."""
  reply = reply.lstrip()
  if not prompt or not reply.startswith(prompt):
    return ""
  return reply[len(prompt) :].lstrip()


def _only_text(reply: str) -> str:
  """Returns the one text of a list that a reply is the text of, or ""."""
  texts = conversations.texts_in(reply)
  return texts[0] if texts is not None and len(texts) == 1 else ""
