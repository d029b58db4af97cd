"""Reads the rows of one file as records of its shape, or as prompts."""

import contextlib
import itertools
import pathlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from typing import NamedTuple

from perl_jax.data import unusable
from perl_jax.data.records import (
  Demonstration,
  Prompt,
  Record,
  Reply,
  reply_of,
  text_of,
)
from perl_jax.data.sources.jsonl import (
  answers,
  described,
  faults,
  formats,
  forms,
)
from perl_jax.data.sources.jsonl import rows as jsonl_rows
from perl_jax.data.sources.jsonl.messages import listed

# How many rows say what shape a file has.
_FIRST = 100
# Why rows are dropped that are well formed, by the name of their count.
_REASONS = {
  "empty_dropped": "in which a reply is empty",
  "equal_dropped": "whose replies are equal",
}


class Asked(NamedTuple):
  """What is asked of files: a kind of record, and how rows are read.

  Attributes:
    kind: The kind of record.
    ignore: Fields and keys of messages to leave out.
    reading: What the user states about the rows.
  """

  kind: str
  ignore: Set[str]
  reading: forms.Reading


def asked(
  kind: str, ignore: Collection[str], reading: forms.Reading | None
) -> Asked:
  """Returns what is asked, with nothing stated of rows if that is None."""
  return Asked(kind, names(ignore), reading or forms.Reading())


def names(ignore: Collection[str]) -> set[str]:
  """Returns the names in a tuple as a command line gives it.

  `--config.data.ignore=[a,b]` is one text with brackets, and `=` an empty one.
  """
  found = set()
  for text in ignore:
    listed = text[:1] + text[-1:] == "[]"
    parts = text[1:-1].split(",") if listed else [text]
    found |= {part.strip(" '\"") if listed else part for part in parts}
  return found - {""}


class File:
  """The rows of one file.

  Attributes:
    shape: The shape of most of the first rows.
    about: What the first row is, for the log.
    columns: The names of its columns in the file.
    hint: How records of the kind could be made of the rows, or "".
    records: Prompts if prompts are asked for and the rows have them, else
      records of the shape.
    counts: How many rows were read and dropped.
    ignored: How many rows have each of the fields that are not read; of
      prompts those that may have been asked, since a reward function is given
      the others.
    changed: How many rows were changed, by what was done to them.
    unusable: The rows that cannot be used.
  """

  def __init__(self, file: pathlib.Path, asked: Asked) -> None:
    """Reads them.

    Raises:
      NoRowsError: No row can be used, or there is none.
      ValueError: A row has a field that cannot be honoured, or is no JSON; or
        the file is one object with all rows in it.
    """
    reader = forms.Reader(asked.kind, asked.reading, asked.ignore)
    missing: list[ValueError] = []
    rows = _whole(reader.read(formats.rows(file), str(file)), missing)
    first = list(itertools.islice(rows, _FIRST))
    self.shape = _shape_of(first)
    self.records: list[Record] = []
    self.counts: Counter[str] = Counter()
    self.ignored: Counter[str] = Counter()
    self.unusable = unusable.Unusable()
    self.changed = reader.changed
    for row in itertools.chain(first, rows):
      self.counts["rows"] += 1
      try:
        self._add(row, asked)
      except unusable.UnusableError as error:
        self.counts["unusable_dropped"] += 1
        self.unusable.add(str(error), error.reason)
    self.counts += Counter(first_turns_only=reader.first_turns_only)
    total, bad = self.counts["rows"], self.counts["unusable_dropped"]
    if missing and total > bad:
      raise missing[0]
    if missing or not total:
      why = missing[0] if missing else _no_rows(file, reader, asked.reading)
      raise unusable.NoRowsError(str(why), total, self.unusable)
    self.about = reader.about
    stated = asked.reading
    self.columns = tuple(first[0].raw)
    self.hint = described.hint(
      reader.first,
      asked.kind,
      stated.margin,
      stated.threshold,
      self.columns,
    )
    if total == bad == 1:
      way_out = faults.of_rows(reader.first, file)
      if way_out and faults.has_rows(reader.first):
        raise ValueError(f"{file}: {way_out}")
      if way_out:
        raise unusable.NoRowsError(f"{file}: {way_out}", 1, self.unusable)
    if total == bad:
      try:
        self.unusable.check(total, f"rows of {file}")
      except ValueError as error:
        why = str(error)
        raise unusable.NoRowsError(why, total, self.unusable) from error

  def _add(self, row: forms.Found, asked: Asked) -> None:
    """Adds the record of a row, or counts why there is none."""
    if isinstance(row.fields, unusable.UnusableError):
      raise row.fields
    kind, where, fields = asked.kind, row.where, row.fields
    shape = jsonl_rows.shape_of(fields, where, kind)
    # Nearly any row has a prompt, but a table of pairs has no labels.
    taken = kind == "prompts" and jsonl_rows.holds(shape, kind)
    if shape != self.shape and not taken:
      raise unusable.UnusableError(
        f"{where}: this row has {listed(fields)}, which makes it one"
        f" of {shape}, but the file begins with {self.shape}"
        f" ({jsonl_rows.SHAPES[self.shape].fields}). Put them into files of"
        " their own.",
        f"which are not {self.shape} as the rows before them",
      )
    record, ignored = jsonl_rows.parse(
      fields, where, shape, asked.ignore, check=kind != "prompts"
    )
    if asked.ignore:
      ignored |= asked.ignore & row.raw.keys()
    if ignored:
      self.counts["ignored_fields"] += 1
      if taken:
        ignored = described.unseen(fields, ignored, record.prompt)
      self.ignored.update(ignored)
    dropped = _why_dropped(record, shape)
    if dropped:
      self.counts[dropped] += 1
      self.unusable.add(where, _REASONS[dropped])
    else:
      self.records.append(self._prompt_of(record, row) if taken else record)

  def _prompt_of(self, record: Record, row: forms.Found) -> Prompt:
    """Returns a record's prompt; the last turn of a dialogue is the reference.

    Without a dialogue, the right answer is, if the row has one. A row that says
    itself what the prompt is has no reference if several messages follow it.
    """
    prompt, reference = record.prompt, None
    if isinstance(record, Demonstration):
      end = len(record.turns) - 1
      if "messages" not in row.fields:
        roles = [message["role"] for message in record.turns]
        end = roles.index("assistant")
      prompt += record.turns[:end]
      reply = reply_of(record.turns[end])
      if isinstance(reply, str) and end + 1 == len(record.turns):
        reference = reply
    elif isinstance(record, Prompt):
      given = answers.given(row.fields, row.raw)
      texts = [text for a in given if (text := answers.text_of(a)) is not None]
      reference = texts[0] if texts else None
      if given and not texts:
        self.changed[answers.NO_TEXT] += 1
    return Prompt(record.id, record.group, prompt, reference, row.raw)


def _whole(
  rows: Iterator[forms.Found], missing: list[ValueError]
) -> Iterator[forms.Found]:
  """Yields all rows, and adds which column is missing once they are read."""
  try:
    yield from rows
  except forms.MissingColumnError as error:
    missing.append(error)


def _no_rows(
  file: pathlib.Path, reader: forms.Reader, reading: forms.Reading
) -> str:
  """Returns why nothing was made of a file."""
  if not reader.count:
    return f"{file} is empty: it has no row to learn from."
  return (
    f"{file}: in none of {reader.count} rows do the scores of two replies to a"
    f" prompt differ by data.margin={reading.margin}. Lower it."
  )


def _shape_of(first: Sequence[forms.Found]) -> str:
  """Returns the shape of most rows, the first of equally many; "" of none."""
  shapes: Counter[str] = Counter()
  for row in first:
    with contextlib.suppress(unusable.UnusableError):
      if isinstance(row.fields, dict):
        shapes[jsonl_rows.shape_of(row.fields, row.where)] += 1
  return next((shape for shape, _ in shapes.most_common(1)), "")


def _why_dropped(record: Record, shape: str) -> str:
  """Returns why a record is dropped, as the name of a count; "" to keep it."""
  replies = jsonl_rows.SHAPES[shape].replies(record)
  texts = [text_of(reply).strip() for reply in replies]
  if "" in texts:
    return "empty_dropped"
  alike = len(set(texts)) < len(texts)
  return "equal_dropped" if alike and not _differ(replies) else ""


def _differ(replies: Sequence[Reply]) -> bool:
  """Whether replies of one text differ in what else a template renders."""
  rest = [
    {k: v for k, v in reply.items() if k not in ("role", "content")}
    if isinstance(reply, dict)
    else {}
    for reply in replies
  ]
  return any(one != rest[0] for one in rest[1:])
