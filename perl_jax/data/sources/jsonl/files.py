"""Reads users' own data: files with one JSON object per line.

The fields of a line are those of one of these shapes:

  preferences      prompt, chosen, rejected
  labelled         prompt, response, label            or  messages, label
  demonstrations   prompt, response                   or  messages
  prompts          prompt

`completion` is another name for `response`. A prompt is a text (one user
message) or a list of `{"role", "content"}` messages; a response is a text or a
list with one assistant message. `chosen` and `rejected` may be lists that hold
the last message only, or the whole conversation. Without `prompt`, the messages
that two whole conversations share at the start are the prompt. `messages` is a
whole conversation.

A path is a file, or a directory of files, of a format in `formats`; `paths`
says which files of a directory hold validation rows. The shape is that of a
file's first row, and all rows of the file must have it: any other row is an
error that names its line.

Counts that are not 0:

- files, rows: files and rows read. files_of_other_kinds: files with rows of
  another kind, which only take part in the split.
- equal_dropped: pairs whose replies are the same.
- empty_dropped: rows with a reply (either, in a pair) without text.
- ignored_fields: rows with further fields, of the row or of a message.
- unused_files: test files, where there are validation files as well.
- validation_*: the same counts for the validation rows, if they are in files of
  their own.
- shared_groups: groups that are in both training and validation files. Both
  sides keep them, since the user chose the split.
"""

import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from perl_jax.data import splits
from perl_jax.data.records import (
  Demonstration,
  Prompt,
  Record,
  Splits,
)
from perl_jax.data.sources.jsonl import formats, paths
from perl_jax.data.sources.jsonl import rows as jsonl_rows
from perl_jax.data.sources.jsonl.messages import listed


def load(
  path: str,
  kind: str,
  *,
  validation_path: str = "",
  seed: int = 0,
  folds: int = 5,
  fold: int = 0,
) -> Splits:
  """Reads the rows of one kind, split by the first user turn.

  Without `validation_path`, and without files that are called so, fold number
  `fold` of `folds` is held out. The folds are those of all rows at `path`, of
  all kinds, so that a directory with the files of several stages is split in
  one way for all of them.

  Args:
    path: File or directory.
    kind: A key of `rows.SHAPES`.
    validation_path: File or directory with the validation rows, instead of a
      fold.
    seed: Seed of the folds.
    folds: Number of folds.
    fold: The validation fold, 0 to `folds - 1`.

  Raises:
    FileNotFoundError: A path does not exist, or a directory has no such files.
    ValueError: A row is malformed (names file, line, field and what was found),
      no file has rows of the kind, or they cannot be split.
  """
  if kind not in jsonl_rows.SHAPES:
    kinds = listed(jsonl_rows.SHAPES)
    raise ValueError(f"There is no kind {kind!r}: it is one of {kinds}.")
  counts: Counter[str] = Counter()
  parts = paths.find_files(path)
  counts += Counter(unused_files=len(parts.unused))
  rows, groups = _read(path, parts.train, kind, counts)
  held_out = parts.validation
  if validation_path:
    found = paths.find_files(validation_path)
    held_out = found.validation or found.train
  tally: Counter[str] = Counter()
  # In a directory of several stages, one may be divided by the names of files
  # while another is not: the fold is for that one.
  validation, others = _read(
    validation_path or path, held_out, kind, tally, bool(validation_path)
  )
  if validation:
    shared = len(set(groups) & set(others))
    counts.update({f"validation_{name}": n for name, n in tally.items()})
    counts += Counter(shared_groups=shared)
    return Splits(rows, validation, dict(counts))
  try:
    assigned = splits.assign_folds(groups, folds=folds, seed=seed)
    return splits.split_records(
      rows, folds=folds, fold=fold, seed=seed, counts=counts, assigned=assigned
    )
  except ValueError as error:
    raise ValueError(
      f"{path}: {error} Or name a file of its own in `validation_path`."
    ) from error


def _read(
  path: str,
  files: Sequence[pathlib.Path],
  kind: str,
  counts: Counter[str],
  required: bool = True,
) -> tuple[list[Record], list[str]]:
  """Returns the records of `kind` in files, and the groups of all their rows.

  Args:
    path: Where the files were found, for errors.
    files: The files.
    kind: The kind of record.
    counts: What is counted; updated in place.
    required: Whether it is an error that no file has such records.
  """
  records, groups, others = [], [], []
  for file in files:
    counts["files"] += 1
    tally: Counter[str] = Counter()
    shape, rows = _read_file(file, tally)
    groups += [record.group for record, _ in rows]
    if kind in (shape, "prompts"):  # every record has a prompt
      counts += tally
      records += [
        _prompt_of(record, fields) if kind == "prompts" else record
        for record, fields in rows
      ]
    else:
      others.append(
        f"{file}, which has {shape} ({jsonl_rows.SHAPES[shape].fields})"
      )
      counts["files_of_other_kinds"] += 1
  if not counts["rows"] and not required:
    return [], []
  if not counts["rows"]:
    fields = [
      shape.fields
      for name, shape in jsonl_rows.SHAPES.items()
      if kind in (name, "prompts")
    ]
    raise ValueError(
      f"No {kind} can be made of {'; '.join(others)}. The fields for {kind}"
      f" are {' or '.join(fields)}."
    )
  if not records:
    raise ValueError(
      f"{path}: none of the {counts['rows']} rows is left:"
      f" {counts['equal_dropped']} have equal replies,"
      f" {counts['empty_dropped']} an empty one."
    )
  return records, groups


def _read_file(
  file: pathlib.Path, counts: Counter[str]
) -> tuple[str, list[tuple[Record, dict[str, Any]]]]:
  """Returns the shape of a file, and its records with the fields of their rows.

  Rows that are dropped are only counted.
  """
  shape, rows = "", []
  for where, fields in formats.rows(file):
    this = jsonl_rows.shape_of(fields, where)
    shape = shape or this
    if this != shape:
      raise ValueError(
        f"{where}: this row has {listed(fields)}, which makes it one"
        f" of {this}, but the file began with {shape}"
        f" ({jsonl_rows.SHAPES[shape].fields}). Put them into files of their"
        " own."
      )
    record, ignored = jsonl_rows.parse(fields, where, shape)
    counts["rows"] += 1
    counts["ignored_fields"] += ignored
    dropped = jsonl_rows.why_dropped(record, shape)
    if dropped:
      counts[dropped] += 1
    else:
      rows.append((record, fields))
  if not shape:
    raise ValueError(f"{file} is empty: it has no row to learn from.")
  return shape, rows


def _prompt_of(record: Record, fields: dict[str, Any]) -> Prompt:
  """Returns a record's prompt; the last turn of a dialogue is the reference."""
  prompt, reference = record.prompt, None
  if isinstance(record, Demonstration):
    *before, last = record.prompt + record.turns
    prompt, reference = tuple(before), last["content"]
  return Prompt(record.id, record.group, prompt, reference, fields)
