"""All rows of users' files, none of which is trained on: to answer or to score.

Rows to score may be of several shapes in one file, and are read row by row:

  pairs           `chosen` and `rejected`, in every shape that pairs may have
  lists           `chosen` and `rejected` are lists of replies, or there is a
                  list `responses` (with scores or without)
  responses       `prompt` and `response`, with a label or without
  conversations   `messages` that end with the assistant

What cannot be used is left out and counted by reason, as rows to train on are.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from perl_jax.data import records, unusable
from perl_jax.data.records import Candidates, Splits
from perl_jax.data.sources.jsonl import (
  conversations,
  files,
  formats,
  forms,
  garbage,
  layouts,
  messages,
  pairs,
  paths,
  rated,
  reading,
)
from perl_jax.data.sources.jsonl import rows as jsonl_rows

KINDS = ("prompts", "candidates")


def load(
  path: str,
  kind: str,
  *,
  limit: int = 0,
  ignore: Collection[str] = (),
  stated: Mapping[str, Any] | None = None,
) -> Splits:
  """Reads all rows of a path, in the order of its files and their lines.

  Args:
    path: File or directory; of a directory all files are read, whatever split
      their names say.
    kind: "prompts" or "candidates".
    limit: Number of rows to keep, from the first on; 0 keeps all. The others
      are counted as `over_limit`.
    ignore: Fields, and keys of messages, to leave out whatever they mean.
    stated: What the user states about the rows: arguments of `forms.stated`.

  Returns:
    The rows, as those for validation.

  Raises:
    FileNotFoundError: The path does not exist, or a directory has no files.
    ValueError: Most rows cannot be used, or one has a field that cannot be
      honoured; names file, line and field.
  """
  asked = reading.Asked(
    kind, reading.names(ignore), forms.stated(**stated or {})
  )
  parts = paths.find_files(path)
  found = sorted((part for split in parts for part in split), key=str)
  counts: Counter[str] = Counter()
  read = _candidates if kind == "candidates" else files.read
  with garbage.no_collection():
    rows, _, notes, shapes = read(path, found, asked, counts)
  if limit and len(rows) > limit:
    counts["over_limit"] = len(rows) - limit
    rows = rows[:limit]
  return Splits((), rows, dict(counts), tuple(notes), tuple(shapes))


def _candidates(
  path: str,
  found: Sequence[Any],
  asked: reading.Asked,
  counts: Counter[str],
) -> tuple[list[Candidates], list[str], list[str], list[str]]:
  """Returns what `files.read` does, of rows to score."""
  rows: list[Candidates] = []
  bad, ignored = unusable.Unusable(), Counter()
  changed: Counter[str] = Counter()
  shapes: dict[str, int] = {}
  empty: dict[Any, unusable.NoRowsError] = {}
  whys: list[str] = []
  for file in found:
    before = len(rows), counts["rows"]
    reader = forms.Reader("candidates", asked.reading, asked.ignore)
    try:
      for row in reader.read(formats.rows(file), str(file)):
        counts["rows"] += 1
        try:
          made, others = _of_row(row, asked.ignore)
        except unusable.UnusableError as error:
          counts["unusable_dropped"] += 1
          bad.add(str(error), error.reason)
          continue
        rows.append(made)
        # Columns are kept beside the scores; only keys of messages are lost.
        ignored.update(name for name in others if "." in name)
      if not reader.count:
        whys.append(f"{file} is empty: it has no row to score.")
    except (unusable.NoRowsError, forms.MissingColumnError) as error:
      if len(rows) > before[0]:
        raise
      whys.append(str(error))
    if len(rows) == before[0]:
      why = whys[-1] if whys else ""
      empty[file] = unusable.NoRowsError(why, counts["rows"] - before[1])
      continue
    counts["files"] += 1
    changed += reader.changed
    shapes[reader.about] = shapes.get(reader.about, 0) + 1
  if whys and not rows:
    raise ValueError(whys[0])
  bad.check(counts["rows"], f"rows of {path}")
  counts += Counter(files_without_rows=len(empty))
  notes = [error.note(file) for file, error in empty.items()] + bad.notes()
  notes += [f"{path}: {n} rows {what}." for what, n in changed.items()]
  if ignored:
    shares = unusable.shares(ignored.items(), counts["rows"])
    notes.append(f"{path}: fields that are not read: {shares}")
  named = [f"{path}: {about}, read to be scored" for about in shapes]
  return rows, [row.group for row in rows], notes, named


def _of_row(
  row: forms.Found, ignore: Collection[str]
) -> tuple[Candidates, set[str]]:
  """Returns the responses of a row, and the fields that are left out.

  Raises:
    UnusableError: It has no response, or an empty one.
  """
  if isinstance(row.fields, unusable.UnusableError):
    raise row.fields
  where, fields = row.where, row.fields
  if pairs.is_many(fields):
    made, others = _of_lists(row, ignore)
  elif rated.listed(fields) and not _has_response(fields):
    made, others = _of_replies(row, ignore)
  else:
    shape = jsonl_rows.shape_of(fields, where)
    if shape == "texts":
      raise messages.error(
        where,
        "text",
        "is a whole text, and a score is that of a response to a prompt: give"
        " `prompt` and `response`, or `messages`.",
        "which have no response",
      )
    if shape == "prompts":
      raise messages.error(
        where,
        "response",
        "missing: there is a prompt, and nothing to score. Responses are"
        " written by configs/generate.py, --config=generate.",
        "which have no response",
      )
    record, others = jsonl_rows.parse(fields, where, shape, ignore)
    made = records.candidates_of(record, row.raw)
  for side, response in zip(made.sides, made.responses, strict=True):
    if not records.text_of(response).strip():
      raise messages.error(
        where, side, "is empty.", "in which a response is empty"
      )
  return made, others


def _has_response(fields: forms.Fields) -> bool:
  """Whether a row has a pair or a response, whatever lists are beside it."""
  talk = fields.get("messages")
  return any(fields.get(name) is not None for name in pairs.REPLIES) or (
    isinstance(talk, list) and layouts.is_answered(talk)
  )


def _of_lists(
  row: forms.Found, ignore: Collection[str]
) -> tuple[Candidates, set[str]]:
  """Returns the responses of lists of chosen and rejected replies."""
  where, fields = row.where, row.fields
  chosen, rejected = (_replies(fields.get(side)) for side in pairs.SIDES)
  if not chosen or not rejected:
    side = "rejected" if chosen else "chosen"
    raise messages.error(
      where,
      side,
      "has no reply, and the other side has a list of them.",
      "in which one side has no reply",
    )
  # Each reply is in a pair, from which the prompt is taken apart.
  matched = [(good, rejected[0]) for good in chosen]
  matched += [(chosen[0], bad) for bad in rejected[1:]]
  found = []
  others: set[str] = set()
  for good, bad in matched:
    pair = pairs.apart(fields | {"chosen": good, "rejected": bad}, where)
    record, further = jsonl_rows.parse(pair, where, "preferences", ignore)
    found.append(record)
    others |= further
  if any(record.prompt != found[0].prompt for record in found):
    raise messages.error(
      where,
      "prompt",
      "the replies do not all follow the same prompt: give it in a field of its"
      " own.",
      "whose replies do not all follow the same prompt",
    )
  responses = [record.chosen for record in found[: len(chosen)]]
  responses += [record.rejected for record in (found[0], *found[len(chosen) :])]
  sides = ("chosen",) * len(chosen) + ("rejected",) * len(rejected)
  made = Candidates(
    where,
    found[0].group,
    found[0].prompt,
    tuple(responses),
    sides,
    listed=True,
    subset=found[0].subset,
    fields=row.raw,
  )
  return made, others


def _of_replies(
  row: forms.Found, ignore: Collection[str]
) -> tuple[Candidates, set[str]]:
  """Returns the responses of a list without sides."""
  where, replies = row.where, rated.listed(row.fields)
  fields = layouts.as_prompt(rated.without_replies(row.fields))
  found = [
    jsonl_rows.parse(
      fields | {"response": reply}, where, "demonstrations", ignore
    )
    for reply in replies
  ]
  first = found[0][0]
  made = Candidates(
    where,
    first.group,
    first.prompt,
    tuple(records.reply_of(record.turns[-1]) for record, _ in found),
    ("response",) * len(found),
    listed=True,
    fields=row.raw,
  )
  return made, set().union(*(others for _, others in found))


def _replies(value: Any) -> list[Any]:
  """Returns one side as a list of replies: texts, or lists of messages."""
  if not isinstance(value, list):
    return [] if value is None else [value]
  if value and isinstance(value[0], dict):
    return [value]
  return list(map(conversations.of, value))
