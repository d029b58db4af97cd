"""Replies with scores: pairs by a margin, labels by a threshold."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from perl_jax.data.sources.jsonl import keys, messages

Fields = dict[str, Any]

# Names of a list of replies in a row, and of the list of their scores.
_LISTS = ("responses", "completions", "replies", "answers", "candidates")
_LISTS += ("generations", "outputs")
_SCORE_LISTS = ("scores", "ratings", "rewards", "rating")
# Names of one reply and its score in an item of such a list.
_TEXTS = ("response", "completion", "text", "content", "answer", "output")
# Names of the score of a row's one response.
SCORES = ("score", "rating", "overall_score", "reward")
# Labels that are words.
_WORDS = {"true": 1, "yes": 1, "false": 0, "no": 0}
RESPONSES = ("response", "completion")


class Reply(NamedTuple):
  """A reply to a prompt, text or messages, and its score."""

  reply: Any
  score: float


def replies_of(fields: Fields) -> tuple[list[Reply], set[str]]:
  """Returns the scored replies of a row, and the names of their fields.

  They are a list of objects with a reply and a score, or two lists. Replies
  whose score is no number are left out. Other rows have none.
  """
  if fields.keys().isdisjoint(_LISTS):
    return [], set()
  for name in _LISTS:
    items = fields.get(name)
    if not isinstance(items, list):
      continue
    for scores_name in _SCORE_LISTS:
      scores = fields.get(scores_name)
      if isinstance(scores, list) and len(scores) == len(items):
        return _scored(zip(items, scores)), {name, scores_name}
    if items and all(isinstance(item, dict) for item in items):
      found = [(_first(item, _TEXTS), _score_in(item)) for item in items]
      if any(reply is not None and score is not None for reply, score in found):
        return _scored(found), {name}
  return [], set()


def listed(fields: Fields) -> list[Any]:
  """Returns the replies of a row with a list of them, with scores or without.

  An item is the reply, or an object with it.
  """
  for name in _LISTS:
    items = fields.get(name)
    if isinstance(items, list) and items:
      return [
        _first(item, _TEXTS)
        if isinstance(item, dict) and "role" not in item
        else item
        for item in items
      ]
  return []


def without_replies(fields: Fields) -> Fields:
  """Returns a row without lists of replies and of their scores."""
  names = (*_LISTS, *_SCORE_LISTS)
  return without(fields, [n for n in names if isinstance(fields.get(n), list)])


def score_of(fields: Fields) -> float | None:
  """Returns the score of a row's one response; None if it has none."""
  if fields.keys().isdisjoint(RESPONSES):
    return None
  return number(_first(fields, SCORES))


def check_score(fields: Fields, where: str) -> None:
  """Checks that the score of a row's one response is a number, if it has one.

  Raises:
    UnusableError: It is something else.
  """
  if fields.keys().isdisjoint(RESPONSES):
    return
  for name in SCORES:
    if name in fields and number(fields[name]) is None:
      raise messages.error(
        where,
        name,
        f"must be a number, but is {messages.found(fields[name])}.",
        "whose score is no number",
      )


def pairs(replies: Sequence[Reply], margin: float) -> Iterator[tuple[Any, Any]]:
  """Yields (chosen, rejected) whose scores differ by `margin` or more."""
  for good in replies:
    for bad in replies:
      if _is_better(good, bad, margin):
        yield good.reply, bad.reply


def _is_better(good: Reply, bad: Reply, margin: float) -> bool:
  """Whether a score is higher by `margin` as they are written: 4.1 and 4.0."""
  more = good.score - bad.score
  return more >= margin or math.isclose(more, margin, rel_tol=1e-9)


class ByPrompt:
  """Rows with one scored response each, as pairs of those of one prompt."""

  def __init__(self) -> None:
    self._rows: dict[str, list[tuple[str, Fields, Reply]]] = {}

  def add(self, where: str, fields: Fields, score: float) -> None:
    """Keeps a row until all are there."""
    named = ("prompt", *sorted(keys.CONTEXT))
    prompt = {name: fields.get(name) for name in named}
    key = json.dumps(prompt, sort_keys=True, default=str)
    reply = Reply(_first(fields, RESPONSES), score)
    self._rows.setdefault(key, []).append((where, fields, reply))

  def pairs(self, margin: float) -> Iterator[tuple[str, Fields]]:
    """Yields the pairs of every prompt, with the file and line of `chosen`."""
    for rows in self._rows.values():
      for where, fields, good in rows:
        number = 0
        for _, _, bad in rows:
          if _is_better(good, bad, margin):
            number += 1
            yield (
              f"{where}#{number}",
              without(fields, RESPONSES + SCORES)
              | {
                "chosen": good.reply,
                "rejected": bad.reply,
              },
            )


def without(fields: Fields, names: Any) -> Fields:
  """Returns a row without some fields."""
  return {k: v for k, v in fields.items() if k not in names}


def _scored(items: Any) -> list[Reply]:
  scored = [(reply, number(score)) for reply, score in items]
  return [
    Reply(reply, score)
    for reply, score in scored
    if reply is not None and score is not None
  ]


def _score_in(item: Fields) -> Any:
  """Returns the score of an item, or its rank below 0, so that 1 is best."""
  score, rank = _first(item, SCORES), number(item.get("rank"))
  return -rank if score is None and rank is not None else score


def _first(fields: Fields, names: Sequence[str]) -> Any:
  return next((fields[n] for n in names if fields.get(n) is not None), None)


def label_of(value: Any) -> float | None:
  """Returns a label as 1.0 or 0.0; None for what is neither."""
  if isinstance(value, str):
    value = _WORDS.get(value.strip().lower(), number(value))
  if not isinstance(value, (bool, int, float)) or value not in (0, 1):
    return None
  return float(value)


def number(value: Any) -> float | None:
  """Returns a score as a number; None for what is none, such as "N/A"."""
  if isinstance(value, bool) or not isinstance(value, (int, float, str)):
    return None
  try:
    score = float(value)
  except (ValueError, OverflowError):
    return None
  return None if math.isnan(score) else score
