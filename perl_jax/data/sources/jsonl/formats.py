"""Reads the rows of a file: JSON lines, a JSON list, Parquet or Arrow.

What a file is, is recognised by its first bytes, since names may say anything:
`datasets` writes JSON lines into `.json` files, and Arrow streams and files
both end in `.arrow`. JSON may be packed with gzip or zstd.
"""

import codecs
import contextlib
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from perl_jax import json_text
from perl_jax.data.sources.jsonl import foreign, hub
from perl_jax.data.sources.jsonl.messages import found

SUFFIXES = tuple(
  name + packed
  for name, packings in (
    (".jsonl", ("", ".gz", ".zst")),
    (".ndjson", ("", ".gz", ".zst")),
    (".json", ("", ".gz", ".zst")),
    (".parquet", ("",)),
    (".arrow", ("",)),
    (".feather", ("",)),
  )
  for packed in packings
)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
# Rows of a table that are Python objects at the same time.
_BATCH_ROWS = 1024

Row = tuple[str, dict[str, Any]]


def rows(file: pathlib.Path | hub.Split) -> Iterator[Row]:
  """Yields the file and number of every row, and its fields.

  Rows are counted from 1; the number of a JSON line is that of the line.

  Raises:
    ValueError: The file is of a format that is not read, is damaged, or holds
      something else than rows; names the file, and the line where it can.
  """
  if isinstance(file, hub.Split):
    yield from table_rows(file.batches(), str(file))
    return
  with file.open("rb") as opened:
    start = opened.read(512)
  if start.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM)):
    yield from _table_rows(file, start)
    return
  name = foreign.format_of(file, start)
  if name:
    raise ValueError(foreign.refusal(file, name))
  with _unpacked(file, start) as lines:
    yield from _json_rows(file, lines)


def table_rows(batches: Iterable[Any], name: str) -> Iterator[Row]:
  """Yields the name and number of every row, and its fields.

  Args:
    batches: Record batches or tables of `pyarrow`.
    name: What the rows are from, which the number follows.
  """
  number = 0
  for batch in batches:
    for first in range(0, batch.num_rows, _BATCH_ROWS):
      for fields in batch.slice(first, _BATCH_ROWS).to_pylist():
        number += 1
        yield f"{name}:{number}", fields


def _table_rows(file: pathlib.Path, start: bytes) -> Iterator[Row]:
  # Imported here, since it takes a while and JSON does not need it.
  import pyarrow
  from pyarrow import parquet

  what = "Parquet" if start.startswith(_PARQUET) else "Arrow"
  try:
    if what == "Parquet":
      with parquet.ParquetFile(file) as opened:
        batches = opened.iter_batches(batch_size=_BATCH_ROWS)
        yield from table_rows(batches, str(file))
      return
    with pyarrow.memory_map(str(file)) as opened:
      if start.startswith(_ARROW_FILE):
        reader = pyarrow.ipc.open_file(opened)
        batches = map(reader.get_batch, range(reader.num_record_batches))
      else:
        batches = pyarrow.ipc.open_stream(opened)
      yield from table_rows(batches, str(file))
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(
      f"{file}: damaged {what} data: {error}. Copy or download it again."
    ) from error


@contextlib.contextmanager
def _unpacked(file: pathlib.Path, start: bytes) -> Iterator[BinaryIO]:
  """Opens a file, and unpacks it while it is read."""
  if start.startswith(_GZIP):
    with gzip.open(file) as lines:
      yield lines
  elif start.startswith(_ZSTD):
    import pyarrow

    with (
      pyarrow.input_stream(str(file), compression="zstd") as stream,
      io.BufferedReader(stream, 1 << 20) as lines,
    ):
      yield lines
  else:
    with file.open("rb") as lines:
      yield lines


def _json_rows(file: pathlib.Path, lines: BinaryIO) -> Iterator[Row]:
  """Yields the rows of JSON lines, or of one list of objects."""
  number, name = 0, str(file)
  try:
    if lines.peek(512).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
      yield from _list_rows(file, lines.read().decode("utf-8-sig"))
      return
    # Lines end at \n alone: JSON text may hold U+2028 and the like.
    for number, line in enumerate(lines, 1):
      text = line.decode("utf-8-sig" if number == 1 else "utf-8")
      if text and not text.isspace():
        where = f"{name}:{number}"
        yield where, _object(text.rstrip("\r\n"), where)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{file}:{number}: not UTF-8 text: {error}. Save the file as UTF-8."
    ) from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{file}: broken gzip data after line {number}: {error}."
    ) from error
  except OSError as error:
    raise ValueError(
      f"{file}: broken zstd data after line {number}: {error}."
    ) from error


def _list_rows(file: pathlib.Path, text: str) -> Iterator[Row]:
  try:
    found_rows = json_text.parse(text)
  except json_text.Fault as error:
    where = file if error.line is None else f"{file}:{error.line}"
    raise ValueError(
      f"{where}: {error.what}. The file begins with [, so it must hold one list"
      " of JSON objects."
    ) from error
  for number, fields in enumerate(found_rows, 1):
    where = f"{file}:{number}"
    if not isinstance(fields, dict):
      raise ValueError(
        f"{where}: an item of the list must be a JSON object, but is"
        f" {found(fields)}."
      )
    yield where, fields


def _object(text: str, where: str) -> dict[str, Any]:
  try:
    fields = json_text.parse(text)
  except json_text.Fault as error:
    whole = (
      " An object over several lines becomes a line with: jq -c ."
      if text.strip() in ("{", "}")
      else ""
    )
    raise ValueError(
      f"{where}: {error.what}. A line must hold one whole JSON object.{whole}"
    ) from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{where}: a line must hold a JSON object, but this is {found(fields)}."
    )
  return fields
