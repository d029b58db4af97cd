"""Reads users' own data: files with one JSON object per line.

The fields of a line are those of one of these shapes:

  preferences      prompt, chosen, rejected
  labelled         prompt, response, label            or  messages, label
  demonstrations   prompt, response                   or  messages
  prompts          prompt
  texts            text, which are demonstrations without a prompt

`completion` is another name for `response`. A prompt is a text (one user
message) or a list of `{"role", "content"}` messages; a response is a text or a
list of messages that the assistant ends. `chosen` and `rejected` may be lists
that hold the last message only, or the whole conversation. Without `prompt`,
the messages that two whole conversations share at the start are the prompt.
`messages` is a whole conversation.

A path is a file, or a directory of files, of a format in `formats`; `paths`
says which files of a directory hold validation rows. The shape of a file is
that of most of its first rows. Rows of another shape, malformed rows and those
that teach nothing are left out, counted by reason and shown; they are an error
if they are most of the rows. A field that is null is absent. A field or a key
of a message that would change the meaning and cannot be honoured is an error
that names its line.

Counts that are not 0:

- files, rows: files and rows read. files_of_other_kinds: files with rows of
  another kind, which only take part in the split. files_without_rows: files
  that are left out beside others, since no row in them can be used.
- equal_dropped: pairs whose replies are the same.
- empty_dropped: rows with a reply (either, in a pair) without text.
- unusable_dropped: rows that are malformed, or of another shape.
- first_turns_only: rows with several turns of a user, of which the first is the
  prompt.
- repeated_rows: rows that say the same as one before them.
- ignored_fields: rows with further fields, of the row or of a message.
- unused_files: test files, where there are validation files as well.
- validation_*: the same counts for the validation rows, if they are in files of
  their own.
- shared_groups: groups that are in both training and validation files. Both
  sides keep them, since the user chose the split.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from perl_jax.data import splits, unusable
from perl_jax.data.records import Labelled, Record, Splits
from perl_jax.data.sources.jsonl import described, forms, paths, repeats
from perl_jax.data.sources.jsonl import reading as reading_lib
from perl_jax.data.sources.jsonl import rows as jsonl_rows
from perl_jax.data.sources.jsonl.messages import listed
from perl_jax.data.sources.jsonl.row import WRONG_LABEL


def load(
  path: str,
  kind: str,
  *,
  validation_path: str = "",
  seed: int = 0,
  folds: int = 5,
  fold: int = 0,
  train_folds: Collection[int] = (),
  ignore: Collection[str] = (),
  reading: forms.Reading | None = None,
) -> Splits:
  """Reads the rows of one kind, split by the first user turn.

  Without `validation_path`, and without files that are called so, fold number
  `fold` of `folds` is held out. The folds are those of all rows at `path`, of
  all kinds, so that a directory with the files of several stages is split in
  one way for all of them.

  Args:
    path: File or directory.
    kind: One of `rows.KINDS`.
    validation_path: File or directory with the validation rows, instead of a
      fold.
    seed: Seed of the folds.
    folds: Number of folds.
    fold: The validation fold, 0 to `folds - 1`.
    train_folds: Folds of the training rows; () is all that are not held out.
    ignore: Fields, and keys of messages, to leave out whatever they mean.
    reading: What the user states about the rows; nothing if None.

  Raises:
    FileNotFoundError: A path does not exist, or a directory has no such files.
    ValueError: Most rows are malformed (names file, line, field and what was
      found), one has a field that cannot be honoured, no file has rows of the
      kind, or they cannot be split.
  """
  if kind not in jsonl_rows.KINDS:
    kinds = listed(jsonl_rows.KINDS)
    raise ValueError(f"There is no kind {kind!r}: it is one of {kinds}.")
  counts: Counter[str] = Counter()
  parts = paths.find_files(path)
  counts += Counter(unused_files=len(parts.unused))
  asked = reading_lib.asked(kind, ignore, reading)
  rows, groups, notes, shapes = read(path, parts.train, asked, counts)
  counts["repeated_rows"], repeated = repeats.among(path, rows)
  notes += paths.doubtful(path, parts.train) + repeated
  counts, tally = +counts, Counter()
  held_out = _held_out(parts, validation_path)
  # In a directory of several stages, one may be divided by the names of files
  # while another is not: the fold is for that one.
  validation, others, more, _ = read(
    validation_path or path, held_out, asked, tally, bool(validation_path)
  )
  if validation:
    counts.update({f"validation_{name}": n for name, n in tally.items()})
    counts += Counter(shared_groups=len(set(groups) & set(others)))
    notes += [note for note in more if note not in notes]
    if train_folds:
      assigned = splits.assign_folds(groups, folds=folds, seed=seed)
      rows, other = splits.of_folds(rows, assigned, train_folds, folds)
      counts.update(other)
    notes += repeats.between(path, rows, validation)
    return Splits(rows, validation, dict(counts), tuple(notes), tuple(shapes))
  try:
    assigned = splits.assign_folds(groups, folds=folds, seed=seed)
    found = splits.split_records(
      rows,
      folds=folds,
      fold=fold,
      seed=seed,
      counts=counts,
      assigned=assigned,
      train_folds=train_folds,
    )
    return dataclasses.replace(found, notes=tuple(notes), shapes=tuple(shapes))
  except ValueError as error:
    raise ValueError(
      f"{path}: {error} Or name a file of its own in `validation_path`."
    ) from error


def _held_out(parts: paths.Parts, validation_path: str) -> tuple:
  """Returns the files with the validation rows; () if a fold is held out."""
  if not validation_path:
    return parts.validation
  found = paths.find_files(validation_path)
  return found.validation or found.train


def read(
  path: str,
  files: Sequence[pathlib.Path],
  asked: reading_lib.Asked,
  counts: Counter[str],
  required: bool = True,
) -> tuple[list[Record], list[str], list[str], list[str]]:
  """Returns the records of `kind` in files, and the groups of all their rows.

  Args:
    path: Where the files were found, for errors.
    files: The files.
    asked: What is asked of the files.
    counts: What is counted; updated in place.
    required: Whether it is an error that no file has such records.

  Returns:
    The records, the groups of all rows, what to say in the log, and the shapes
    of the files.
  """
  records, groups, others = [], [], []
  shapes: dict[str, list[pathlib.Path]] = {}
  kind = asked.kind
  ignored: Counter[str] = Counter()
  changed: Counter[str] = Counter()
  bad = unusable.Unusable()
  hinted = False
  empty: dict[pathlib.Path, unusable.NoRowsError] = {}
  for file in files:
    try:
      part = reading_lib.File(file, asked)
    except unusable.NoRowsError as error:
      empty[file] = error
      continue
    counts["files"] += 1
    shape = part.shape
    groups += [record.group for record in part.records]
    if jsonl_rows.holds(shape, kind):
      counts += part.counts
      ignored += part.ignored
      changed += part.changed
      bad.merge(part.unusable)
      shapes.setdefault(part.about, []).append(file)
      records += part.records
    else:
      hinted |= bool(part.hint)
      others.append(
        f"{file}, which has {shape} ({jsonl_rows.SHAPES[shape].fields}) in the"
        f" columns {listed(part.columns)}.{part.hint}"
      )
      counts["files_of_other_kinds"] += 1
  if empty and not (shapes or others):
    raise next(iter(empty.values()))
  if not counts["rows"] and not required:
    return [], [], [], []
  if not counts["rows"]:
    raise ValueError(_none_of(kind, others, hinted))
  notes = []
  for file, error in empty.items():
    counts += Counter(rows=error.rows, unusable_dropped=len(error.unusable))
    counts["files_without_rows"] += 1
    bad.merge(error.unusable)
    notes.append(error.note(file))
  if not records and not counts["unusable_dropped"]:
    raise ValueError(
      f"{path}: none of the {counts['rows']} rows is left:"
      f" {counts['equal_dropped']} have equal replies,"
      f" {counts['empty_dropped']} an empty one."
    )
  bad.check(counts["rows"], f"rows of {path}")
  _check_labels(records, bad, path)
  notes += bad.notes() + _notes(path, kind, counts, changed, ignored)
  notes += _not_there(path, asked, ignored)
  named = [
    f"{found[0]}"
    + (f" and {len(found) - 1} more" if len(found) > 1 else "")
    + f": {about}, read as {kind}"
    for about, found in shapes.items()
  ]
  return records, groups, notes, named


def _none_of(kind: str, others: Sequence[str], hinted: bool) -> str:
  """Returns that no file has rows of a kind, and the ways out.

  Args:
    kind: The kind of record.
    others: What the files have instead, as sentences.
    hinted: Whether one of them has a way out.
  """
  fields = [
    shape.fields
    for name, shape in jsonl_rows.SHAPES.items()
    if jsonl_rows.holds(name, kind)
  ]
  return (
    f"No {kind} can be made of {' '.join(others)} The fields for {kind}"
    f" are {' or '.join(fields)}.{'' if hinted else described.example(kind)}"
  )


def _notes(
  path: str,
  kind: str,
  counts: Mapping[str, int],
  changed: Mapping[str, int],
  ignored: Mapping[str, int],
) -> list[str]:
  """Returns what to say of rows that are used, and what is not read of them."""
  notes = []
  if counts["first_turns_only"]:
    notes.append(
      f"{path}: {counts['first_turns_only']} rows have several turns of a user,"
      " of which the first is the prompt. The others follow an answer, so they"
      " are not asked."
    )
  notes += [f"{path}: {n} rows {what}." for what, n in changed.items()]
  if ignored:
    shares = unusable.shares(ignored.items(), counts["rows"])
    what = "fields that are not read"
    if kind == "prompts":
      what = (
        "fields that are not in the prompt, which the model does not see and a"
        " reward function does"
      )
    notes.append(f"{path}: {what}: {shares}")
  return notes


def _not_there(
  path: str, asked: reading_lib.Asked, ignored: Mapping[str, int]
) -> list[str]:
  """Returns which names to leave out are in no row, as a sentence."""
  there = {*ignored, *(name.rpartition(".")[2] for name in ignored)}
  unknown = sorted(asked.ignore - there)
  if not unknown or asked.kind == "prompts":  # Of these not all are counted.
    return []
  return [
    f"{path}: no row that is read has {listed(unknown)}, which data.ignore"
    " names."
  ]


def _check_labels(
  records: Sequence[Record], bad: unusable.Unusable, path: str
) -> None:
  """Refuses rows of one label if all others were left out for theirs.

  Raises:
    ValueError: They are, as where labels are 1 and -1.
  """
  others = bad.counts.get(WRONG_LABEL)
  labels = {row.label for row in records if isinstance(row, Labelled)}
  if others and len(labels) == 1:
    raise ValueError(
      f"{path}: all labels are {labels.pop():g}, but for {others} that are"
      " neither 0 nor 1. Say from which label on a response is good:"
      " --config.data.threshold=0.5"
    )
