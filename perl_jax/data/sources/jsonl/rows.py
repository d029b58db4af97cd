"""Turns one row of a user's file into a record.

`SHAPES` has an entry for every kind of row; `files` describes them, and `row`
reads their fields.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from perl_jax import names
from perl_jax.data.records import Record, Reply, reply_of
from perl_jax.data.sources.jsonl import described, refused
from perl_jax.data.sources.jsonl.messages import listed
from perl_jax.data.sources.jsonl.row import Row
from perl_jax.data.unusable import UnusableError


@dataclasses.dataclass(frozen=True)
class Shape:
  """The fields of one kind of row, and the record made of them.

  Attributes:
    fields: Names of the fields, as errors show them.
    marks: Fields by which the shape is recognised. A row with marks of several
      shapes has the one that comes first in `SHAPES`.
    record: Function that makes the record of a row.
    replies: Function that returns the replies of a record that must be neither
      empty nor equal.
    kind: The kind of record that it is, if that is not the name of the shape.
    has_prompt: Whether there is a prompt in it, which RL can take.
  """

  fields: str
  marks: tuple[str, ...]
  record: Callable[[Row], Record]
  replies: Callable[[Any], tuple[Reply, ...]]
  kind: str = ""
  has_prompt: bool = True


# By name, which is mostly that of the kind of record that a row holds.
SHAPES = {
  "preferences": Shape(
    fields="prompt/chosen/rejected",
    marks=("chosen", "rejected"),
    record=Row.preference,
    replies=lambda record: (record.chosen, record.rejected),
  ),
  "labelled": Shape(
    fields="prompt/response/label or messages/label",
    marks=("label",),
    record=Row.labelled,
    replies=lambda record: (record.response,),
  ),
  "demonstrations": Shape(
    fields="prompt/response or messages",
    marks=("response", "completion", "messages"),
    record=Row.demonstration,
    replies=lambda record: (reply_of(record.turns[-1]),),
  ),
  "prompts": Shape(
    fields="prompt",
    marks=("prompt",),
    record=Row.prompt_only,
    replies=lambda record: (),
  ),
  "texts": Shape(
    fields="text",
    marks=("text",),
    record=Row.text,
    replies=lambda record: (record.text,),
    kind="demonstrations",
    has_prompt=False,
  ),
}
# Kinds of records that are made of rows.
KINDS = tuple(name for name, shape in SHAPES.items() if not shape.kind)

# Shapes by the field that marks them, the first that counts first.
_MARKS = {mark: name for name, shape in SHAPES.items() for mark in shape.marks}


def shape_of(fields: Mapping[str, Any], where: str, kind: str = "") -> str:
  """Returns the shape of a row, a key of `SHAPES`, by its fields.

  Args:
    fields: The row.
    where: File and line, for errors.
    kind: The kind of record that is wanted, for errors.

  Raises:
    UnusableError: The row has no field of any shape.
  """
  for mark, name in _MARKS.items():
    if fields.get(mark) is not None:
      return name
  columns = described.suggested(fields, kind)
  columns = columns or described.conversation_in(fields)
  near = [
    f"{name!r} for {match!r}"
    for name in fields
    if not columns
    and not refused.is_seen(name, fields[name])
    and (match := names.nearest(name, _MARKS))
  ]
  raise UnusableError(
    f"{where}: no field to learn from: it has {listed(fields)}. The shapes are"
    f" {_all_shapes()}."
    + (f" Is {' and '.join(near)} a slip?" if near else "")
    + f" {described.renamed(columns or {'question': 'prompt'})}",
    "which have no field to learn from",
  )


def holds(shape: str, kind: str) -> bool:
  """Whether records of a kind are made of the rows of a shape."""
  if kind == "prompts":
    return SHAPES[shape].has_prompt
  return kind == (SHAPES[shape].kind or shape)


def parse(
  fields: Mapping[str, Any],
  where: str,
  shape: str,
  ignore: Collection[str] = (),
  check: bool = True,
) -> tuple[Record, set[str]]:
  """Turns a row into the record of its shape.

  Args:
    fields: The row. A field that is null is absent.
    where: File and line, which become the id and are named in errors.
    shape: A key of `SHAPES`.
    ignore: Keys of messages to leave out whatever they mean.
    check: Whether all fields that are left out are checked. Where a reward
      function is given the whole row, only those that a model should see are.

  Returns the record, and the names of the further fields and keys of messages.

  Raises:
    UnusableError: A field is missing or has a wrong value.
    ValueError: A field or key would change the meaning if it were left out.
  """
  row = Row(fields, where, ignore, _all_shapes())
  record = SHAPES[shape].record(row)
  return record, row.ignored(check)


def _all_shapes() -> str:
  """Returns the fields of all shapes, for errors."""
  return "; ".join(shape.fields for shape in SHAPES.values())
