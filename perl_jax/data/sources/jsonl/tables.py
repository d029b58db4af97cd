"""Reads the rows of tables: Parquet, Arrow files and streams, record batches.

A cell becomes what `to_pylist` of `pyarrow` makes of it. A time that Python
cannot hold (nanoseconds, years above 9999) is its text instead: such columns
are hardly ever read, and should not keep the others from being read. Values
that are written as JSON (the type arrow.json, as `datasets` writes columns of
several types) are what the JSON says. Numbers that stand for names may be read
as these; see `class_labels`.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from perl_jax import json_text
from perl_jax.data.sources.jsonl import class_labels, joined

PARQUET = b"PAR1"
_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
# First bytes of the files that are read here.
MAGIC = (PARQUET, _ARROW_FILE, _ARROW_STREAM)
# Rows of a table that are Python objects at the same time.
_BATCH_ROWS = 1024

Row = tuple[str, dict[str, Any]]


def rows(file: pathlib.Path, start: bytes) -> Iterator[Row]:
  """Yields the file and number of every row, and its fields.

  Args:
    file: A file that begins with one of `MAGIC`.
    start: Its first bytes.

  Raises:
    ValueError: The file is damaged, or several that were joined; or `rows_of`
      raises it.
  """
  # Imported here, since it takes a while and JSON does not need it.
  import pyarrow
  from pyarrow import parquet

  what = "Parquet" if start.startswith(PARQUET) else "Arrow"
  try:
    if what == "Parquet":
      with parquet.ParquetFile(file) as opened:
        joined.require_one_parquet(file, opened.metadata)
        batches = opened.iter_batches(batch_size=_BATCH_ROWS)
        yield from rows_of(batches, str(file), opened.schema_arrow)
      return
    with pyarrow.memory_map(str(file)) as opened:
      if start.startswith(_ARROW_FILE):
        joined.require_one_arrow(file)
        reader = pyarrow.ipc.open_file(opened)
        batches = map(reader.get_batch, range(reader.num_record_batches))
      else:
        batches = joined.streams(opened, file)
      yield from rows_of(batches, str(file))
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).rstrip(". ")
    raise ValueError(
      f"{file}: damaged {what} data: {reason}. Copy or download it again."
    ) from error


def rows_of(
  batches: Iterable[Any], name: str, schema: Any = None
) -> Iterator[Row]:
  """Yields the name and number of every row, and its fields.

  Args:
    batches: Record batches or tables of `pyarrow`.
    name: What the rows are from, which the number follows.
    schema: The `pyarrow.Schema` of the file, for batches whose own has lost
      what is written beside it; None takes that of the first batch.

  Raises:
    ValueError: Two columns have one name, or the values of one cannot be read.
  """
  number, labels = 0, None
  for batch in batches:
    fields = batch.schema.names
    _check_names(fields, name)
    if labels is None:
      labels = class_labels.Labels(schema or batch.schema, name)
    for first in range(0, batch.num_rows, _BATCH_ROWS):
      part = batch.slice(first, _BATCH_ROWS)
      columns = [
        labels.named(field, _values(column, field, name))
        for field, column in zip(fields, part.columns, strict=True)
      ]
      for values in zip(*columns, strict=True):
        number += 1
        yield f"{name}:{number}", dict(zip(fields, values, strict=True))


def _check_names(fields: list[str], name: str) -> None:
  twice = sorted({field for field in fields if fields.count(field) > 1})
  if twice:
    raise ValueError(
      f"{name}: there are several columns {twice[0]!r}. Give each a name of its"
      " own, with `rename_columns` of pyarrow."
    )


def _values(column: Any, field: str, name: str) -> list[Any]:
  """Returns the values of a column; see the module for times and JSON."""
  import pyarrow

  try:
    values = _listed(column)
    if _mapped(column.type, _as_stored) != column.type:
      values = [_parsed(value, column.type) for value in values]
    return values
  except json_text.Fault as error:
    raise ValueError(
      f"{name}: the column {field!r} of {column.type} has a value that is no"
      f" JSON: {error}."
    ) from error
  except (ValueError, OverflowError, pyarrow.ArrowException) as error:
    try:
      return column.cast(_mapped(column.type, _as_text)).to_pylist()
    except (ValueError, pyarrow.ArrowException):
      raise ValueError(
        f"{name}: the column {field!r} of {column.type} cannot be read:"
        f" {str(error).rstrip('. ')}. Leave it out, with `drop_columns` of"
        " pyarrow."
      ) from error


def _listed(column: Any) -> list[Any]:
  # Nanoseconds would be objects of `pandas` wherever that is installed.
  micro = _mapped(column.type, _in_microseconds)
  return (column if micro == column.type else column.cast(micro)).to_pylist()


def _as_stored(kind: Any) -> Any:
  """Returns the type of text in the place of one of JSON."""
  import pyarrow

  return kind.storage_type if isinstance(kind, pyarrow.JsonType) else kind


def _parsed(value: Any, kind: Any) -> Any:
  """Returns a value of a type with what is written as JSON in it parsed.

  Raises:
    json_text.Fault: It is no JSON.
  """
  import pyarrow

  if value is None:
    return None
  if isinstance(kind, pyarrow.JsonType):
    return json_text.parse(value)
  if pyarrow.types.is_struct(kind):
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return {f.name: _parsed(value[f.name], f.type) for f in fields}
  if pyarrow.types.is_map(kind):
    return [
      (_parsed(key, kind.key_type), _parsed(item, kind.item_type))
      for key, item in value
    ]
  if isinstance(value, list):
    return [_parsed(item, kind.value_type) for item in value]
  return value


def _as_text(kind: Any) -> Any:
  """Returns the type of text in the place of one of times."""
  import pyarrow

  return pyarrow.string() if pyarrow.types.is_temporal(kind) else kind


def _in_microseconds(kind: Any) -> Any:
  """Returns the type with microseconds in the place of nanoseconds."""
  import pyarrow

  if getattr(kind, "unit", None) != "ns":
    return kind
  if pyarrow.types.is_timestamp(kind):
    return pyarrow.timestamp("us", kind.tz)
  if pyarrow.types.is_duration(kind):
    return pyarrow.duration("us")
  return pyarrow.time64("us")


def _mapped(kind: Any, change: Callable[[Any], Any]) -> Any:
  """Returns a type with every type inside it changed."""
  import pyarrow

  if pyarrow.types.is_struct(kind):
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return pyarrow.struct(
      [field.with_type(_mapped(field.type, change)) for field in fields]
    )
  if pyarrow.types.is_map(kind):
    return pyarrow.map_(
      _mapped(kind.key_type, change), _mapped(kind.item_type, change)
    )
  if pyarrow.types.is_fixed_size_list(kind):
    return pyarrow.list_(_mapped(kind.value_type, change), kind.list_size)
  if pyarrow.types.is_large_list(kind):
    return pyarrow.large_list(_mapped(kind.value_type, change))
  if pyarrow.types.is_list(kind):
    return pyarrow.list_(_mapped(kind.value_type, change))
  return change(kind)
