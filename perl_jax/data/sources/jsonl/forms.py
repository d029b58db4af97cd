"""The rows that people have, as rows with the fields that `rows` reads.

A user's columns get our names first, and null fields are left out. Then:

  conversations   ShareGPT: a list of {"from", "value"}; becomes `messages`
  instruction     Alpaca, with `input`, `output`, `history`; becomes `prompt`
                  and `response`
  chosen,         texts, messages, conversations that repeat the prompt,
  rejected        transcripts, or lists of them; see `pairs`
  responses       replies with scores; become pairs or labels, see `rated`
  response_0,     two replies and which is better, under the names of public
  response_1 ..   data sets; become `chosen` and `rejected`, see `verdicts`
  messages        that end with the user are a prompt for RL
  turns           texts of a user, as MT-Bench has them; the first is the prompt
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from perl_jax import json_text, names
from perl_jax.data import unusable
from perl_jax.data.sources.jsonl import (
  cells,
  described,
  endings,
  formats,
  habits,
  layouts,
  messages,
  mistaken,
  pairs,
  rated,
  refused,
  replies,
  stand_ins,
  summaries,
  verdicts,
)

Fields = dict[str, Any]

# Names that `columns` may map to.
KNOWN = (
  *("prompt", "response", "completion", "chosen", "rejected", "label"),
  *("messages", "conversations", "instruction", "input", "output", "history"),
  *("system", "tools", "score", "responses", "scores", "subset", "text"),
  "turns",
  *verdicts.NUMBERED,
  *described.ANSWERS[:-1],
  *refused.THOUGHTS,
)


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a user states about rows.

  Attributes:
    columns: Our name of each column that is called otherwise.
    margin: Least difference of two scores that makes a pair of their replies;
      None makes none.
    threshold: Score from which on a response is good; None if labels say it.
  """

  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  margin: float | None = None
  threshold: float | None = None

  def __post_init__(self) -> None:
    for column, name in self.columns.items():
      if name not in KNOWN:
        raise ValueError(
          f"data.columns maps {column!r} to {name!r}, which is no field of any"
          f" shape: they are {messages.listed(KNOWN)}."
          + names.did_you_mean(name, KNOWN)
        )
    targets = list(self.columns.values())
    twice = {name for name in targets if targets.count(name) > 1}
    if twice:
      raise ValueError(
        f"data.columns maps several columns to {messages.listed(sorted(twice))}"
        f": {dict(self.columns)}."
      )
    if self.margin is not None and not self.margin > 0:
      raise ValueError(f"data.margin={self.margin} must be more than 0.")


def stated(
  columns: str = "", margin: float = 0.0, threshold: str = ""
) -> Reading:
  """Returns what the fields of `config.data` state about rows.

  Args:
    columns: A JSON object of our names by column, "" for none.
    margin: 0 makes no pairs.
    threshold: A number as text; "" if labels say which responses are good.

  Raises:
    ValueError: One of them is malformed.
  """
  try:
    named = json_text.parse(columns or "{}")
  except json_text.KeyTwice as error:
    raise ValueError(f"data.columns={columns!r}: {error.what}.") from error
  except json_text.Fault:
    named = None
  if not isinstance(named, dict) or not all(
    isinstance(name, str) for name in named.values()
  ):
    raise ValueError(
      f"data.columns={columns!r} must be a JSON object that gives columns our"
      ' names: --config.data.columns=\'{"question": "prompt"}\''
    )
  least = rated.number(threshold) if threshold else None
  if threshold and (least is None or not math.isfinite(least)):
    raise ValueError(f"data.threshold={threshold!r} must be a number.")
  return Reading(named, margin or None, least)


class MissingColumnError(ValueError):
  """No row of a file has a column that the user names."""


class Found(NamedTuple):
  """One row that is made of a row of a file.

  Attributes:
    where: File and line, and a number after # if the row became several.
    fields: The fields that `rows` reads, or why there are none.
    raw: The row as it is in the file.
  """

  where: str
  fields: Fields | unusable.UnusableError
  raw: Fields


class Reader:
  """Turns the rows of one file, one by one.

  Attributes:
    about: What the first row is, for the log.
    first: The first row, with our names; empty before it.
    count: Number of rows read.
    first_turns_only: Number of rows with further turns of a user.
    changed: How many rows were changed, by what was done to them.
  """

  def __init__(
    self, kind: str, reading: Reading, ignore: Collection[str] = ()
  ) -> None:
    """Takes the kind of record that is wanted, and what the user states.

    Args:
      kind: The kind of record.
      reading: What the user states.
      ignore: Columns that are left out, under their names in the file.
    """
    self._kind = kind
    self._reading = reading
    self._ignore = ignore
    self._missing = set(reading.columns)
    self._columns: set[str] = set()
    self._by_prompt = rated.ByPrompt()
    self._habits = habits.Habits()
    self.changed: Counter[str] = Counter()
    self.about = ""
    self.first: Fields = {}
    self.count = self.first_turns_only = 0

  def read(self, rows: Iterator[formats.Row], name: str) -> Iterator[Found]:
    """Yields the rows that are made of all rows of a file.

    Args:
      rows: File and line of every row, and its fields.
      name: Name of the file, for errors.

    Raises:
      ValueError: A column that the user names is in no row, or is there twice;
        or the prompt of pairs seems to be in a column that is not read.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, habits.FIRST))
    named = [self._named(*row) for row in first]
    mistaken.check_words(named, name)
    self._habits = habits.of(named)
    for where, fields in itertools.chain(first, rows):
      self.count += 1
      try:
        for made, ours in self.rows(where, fields):
          yield Found(made, endings.without(ours, self.changed), fields)
      except unusable.UnusableError as error:
        yield Found(where, error, fields)
    for made, ours in self.rest():
      yield Found(made, endings.without(ours, self.changed), ours)
    self.check_columns(name)

  def rows(self, where: str, fields: Fields) -> Iterator[tuple[str, Fields]]:
    """Yields file and line, and the fields of `rows`, for a row of a file.

    There may be several of a row with several replies, and there is none yet of
    one that makes pairs with other rows.

    Raises:
      ValueError: A field is malformed.
    """
    fields = stand_ins.without(self._named(where, fields), self.changed)
    fields = summaries.apart(fields)
    fields = verdicts.decided(fields, where, self._kind)
    if not self.about:
      self.about, self.first = described.about(fields), fields
    fields, further = layouts.first_turn(fields)
    self.first_turns_only += further > 0
    fields = self._habits.applied(fields, self.changed)
    fields = layouts.as_messages(fields, where)
    if self._kind != "prompts":
      fields = replies.with_more(fields, self.changed)
    if self._kind != "labelled" and "label" in fields:
      fields = layouts.without_answer(fields)
    if "chosen" in fields or "rejected" in fields:
      yield from self._pairs(where, fields)
      return
    scored, used = rated.replies_of(fields)
    if scored and self._kind != "candidates":
      yield from self._rated(where, rated.without(fields, used), scored)
      return
    if self._kind == "preferences" and self._reading.margin is not None:
      rated.check_score(fields, where)
      score = rated.score_of(fields)
      if score is not None:
        mistaken.check_asked(fields, where)
        self._by_prompt.add(where, fields, score)
        return
    if self._kind == "labelled" and self._reading.threshold is not None:
      fields = self._by_threshold(where, fields)
    if self._kind == "prompts":
      fields = layouts.as_prompt(fields)
    yield where, fields

  def rest(self) -> Iterator[tuple[str, Fields]]:
    """Yields what several rows make together, after the last row."""
    if self._reading.margin is not None:
      yield from self._by_prompt.pairs(self._reading.margin)

  def check_columns(self, file: str) -> None:
    """Checks that every column that the user names was there.

    Raises:
      MissingColumnError: One was in no row.
    """
    for column in sorted(self._missing):
      raise MissingColumnError(
        f"{file} has no column {column!r}, which data.columns names: it has"
        f" {messages.listed(sorted(self._columns))}."
        + names.did_you_mean(column, self._columns)
      )

  def _named(self, where: str, fields: Fields) -> Fields:
    """Returns a row with our names, and without fields that are null."""
    columns = self._reading.columns
    ours = refused.system_columns(fields, {*columns, *self._ignore})
    if not (columns or ours or self._ignore) and cells.are_plain(fields):
      return fields
    if self._missing:
      self._columns.update(fields)
      self._missing -= fields.keys()
    named: Fields = {}
    for column, value in fields.items():
      name = columns.get(column) or ours.get(column, column)
      if cells.is_missing(value) or column in self._ignore:
        continue
      if name in named:
        raise ValueError(
          f"{where}: data.columns gives a second field the name {name!r}: this"
          f" row has {messages.listed(fields)}. Map {name!r} to another name"
          f' too, or leave it out: --config.data.ignore="({name!r},)".'
        )
      named[name] = cells.plain(value)
    return named

  def _pairs(self, where: str, fields: Fields) -> Iterator[tuple[str, Fields]]:
    fields = pairs.with_chosen(fields)
    mistaken.check_prompt(fields, where)
    if self._kind != "candidates":
      mistaken.check_replies(fields, where)
    if not pairs.is_many(fields):
      yield where, pairs.apart(fields, where)
      return
    if self._kind == "candidates":
      yield where, fields
      return
    for number, pair in enumerate(pairs.each(fields), 1):
      yield f"{where}#{number}", pairs.apart(pair, where)
      if self._kind == "prompts":
        return

  def _rated(
    self, where: str, fields: Fields, scored: list[rated.Reply]
  ) -> Iterator[tuple[str, Fields]]:
    """Yields pairs or labelled responses of several replies, or the prompt."""
    margin, threshold = self._reading.margin, self._reading.threshold
    if self._kind == "labelled" and threshold is not None:
      for number, (reply, score) in enumerate(scored, 1):
        labelled = self._labelled(fields | {"response": reply}, score)
        yield f"{where}#{number}", labelled
    elif self._kind == "preferences" and margin is not None:
      for number, (good, bad) in enumerate(rated.pairs(scored, margin), 1):
        pair = fields | {"chosen": good, "rejected": bad}
        pair = layouts.as_messages(pair, where)
        mistaken.check_asked(pair, where)
        yield f"{where}#{number}", pairs.apart(pair, where)
    else:
      yield where, fields

  def _by_threshold(self, where: str, fields: Fields) -> Fields:
    """Returns a row with the label that its score has."""
    rated.check_score(fields, where)
    score, label = rated.score_of(fields), fields.get("label")
    if score is not None and label is not None:
      raise messages.error(
        where,
        "label",
        "is beside a score, and data.threshold can be about either: leave one"
        " out with --config.data.ignore=\"('label',)\".",
        "which have both a label and a score",
      )
    # A label may be a score, too, if it is no word and no Boolean.
    score = rated.number(label) if score is None else score
    return fields if score is None else self._labelled(fields, score)

  def _labelled(self, fields: Fields, score: float) -> Fields:
    label = score >= self._reading.threshold
    return rated.without(fields, rated.SCORES) | {"label": label}
