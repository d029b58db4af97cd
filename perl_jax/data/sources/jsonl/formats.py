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
import shlex
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from perl_jax import json_text
from perl_jax.data import unusable
from perl_jax.data.sources.jsonl import faults, foreign, hub, tables
from perl_jax.data.sources.jsonl.messages import found

SUFFIXES = tuple(
  name + packed
  for name, packings in (
    (".jsonl", ("", ".gz", ".zst")),
    (".jsonlines", ("", ".gz", ".zst")),
    (".jl", ("", ".gz", ".zst")),
    (".ndjson", ("", ".gz", ".zst")),
    (".json", ("", ".gz", ".zst")),
    (".parquet", ("",)),
    (".arrow", ("",)),
    (".feather", ("",)),
  )
  for packed in packings
)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# A frame that is skipped, which pzstd puts first.
_SKIPPED = b"\x2a\x4d\x18"
# What may be in a file that is packed, by its first bytes, as it should be
# called.
_PACKED_TOO = {
  tables.MAGIC[0]: ".parquet", tables.MAGIC[1]: ".arrow",
  tables.MAGIC[2]: ".arrow", _GZIP: ".jsonl.gz", _ZSTD: ".jsonl.zst",
}  # fmt: skip

Row = tables.Row


def rows(file: pathlib.Path | hub.Split) -> Iterator[Row]:
  """Yields the file and number of every row, and its fields.

  Rows are counted from 1; the number of a JSON line is that of the line.

  Raises:
    ValueError: The file is of a format that is not read, is damaged, or holds
      something else than rows; names the file, and the line where it can.
  """
  if isinstance(file, hub.Split):
    yield from tables.rows_of(file.batches(), str(file))
    return
  with file.open("rb") as opened:
    start = opened.read(512)
  if start.startswith(tables.MAGIC):
    yield from tables.rows(file, start)
    return
  name = foreign.format_of(file, start)
  if name:
    raise ValueError(foreign.refusal(file, name))
  tool = _packed_with(start)
  with _unpacked(file, tool) as lines:
    yield from _json_rows(file, lines, tool)


def _packed_with(start: bytes) -> str:
  """What a file is packed with, by its first bytes: gzip, zstd, or ""."""
  if start.startswith(_GZIP):
    return "gzip"
  skipped = start[1:4] == _SKIPPED and 0x50 <= start[0] <= 0x5F
  return "zstd" if skipped or start.startswith(_ZSTD) else ""


@contextlib.contextmanager
def _unpacked(file: pathlib.Path, tool: str) -> Iterator[BinaryIO]:
  """Opens a file, and unpacks it while it is read."""
  if tool == "gzip":
    with gzip.open(file) as lines:
      yield lines
  elif tool == "zstd":
    import pyarrow

    with (
      pyarrow.input_stream(str(file), compression="zstd") as stream,
      io.BufferedReader(stream, 1 << 20) as lines,
    ):
      yield lines
  else:
    with file.open("rb") as lines:
      yield lines


def _json_rows(file: pathlib.Path, lines: BinaryIO, tool: str) -> Iterator[Row]:
  """Yields the rows of JSON lines, or of one list of objects."""
  number, name = 0, str(file)
  try:
    if tool:
      _check_unpacked(file, lines.peek(512), tool)
    if lines.peek(512).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
      content = lines.read()
      try:
        text = content.decode("utf-8-sig")
      except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise
      yield from _list_rows(file, text, bool(tool))
      return
    # Lines end at \n alone: JSON text may hold U+2028 and the like.
    for number, line in enumerate(lines, 1):
      text = line.decode("utf-8-sig")  # Any may be the first of a joined file.
      if text and not text.isspace():
        where = f"{name}:{number}"
        yield where, _object(text, where, None if tool else file)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{file}:{number}: not UTF-8 text: {error}. Save the file as UTF-8."
    ) from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{file}: broken gzip data after line {number}: {error}. Copy or"
      " download it again."
    ) from error
  except OSError as error:
    raise ValueError(
      f"{file}: broken zstd data after line {number}: {error}. Copy or"
      " download it again."
    ) from error


def _check_unpacked(file: pathlib.Path, start: bytes, tool: str) -> None:
  """Checks that what is packed in a file is text.

  Args:
    file: The packed file.
    start: The first bytes of what is in it.
    tool: Name of the program that packed it, "gzip" or "zstd".

  Raises:
    ValueError: It is a table, an archive or packed once more.
  """
  if start[257:262] == b"ustar":
    raise ValueError(foreign.refusal(file, "tar"))
  for magic, suffix in _PACKED_TOO.items():
    if start.startswith(magic):
      made = file.with_name(f"{file.name.split('.')[0]}-unpacked{suffix}")
      raise ValueError(
        f"{file} is packed with {tool}, and not text is in it, but what is"
        f" called {suffix}. Unpack it first: {tool} -dc <"
        f" {shlex.quote(str(file))} > {shlex.quote(str(made))}"
      )


def _list_rows(file: pathlib.Path, text: str, packed: bool) -> Iterator[Row]:
  def way_out() -> str:
    return "" if packed else faults.of_list(text, file)

  try:
    found_rows = json_text.parse(text)
  except json_text.Fault as error:
    where = file if error.line is None else f"{file}:{error.line}"
    raise ValueError(
      f"{where}: {error.what}. The file begins with [, so it must hold one list"
      f" of JSON objects.{way_out()}"
    ) from error
  for number, fields in enumerate(found_rows, 1):
    where = f"{file}:{number}"
    if not isinstance(fields, dict):
      raise ValueError(
        f"{where}: an item of the list must be a JSON object, but is"
        f" {found(fields)}.{way_out() if isinstance(fields, list) else ''}"
      )
    yield where, fields


def _object(text: str, where: str, file: pathlib.Path | None) -> dict[str, Any]:
  """Returns the object in a line; the way out names the file, if it is one."""
  try:
    fields = json_text.parse(text.rstrip("\r\n"))
  except json_text.Fault as error:
    last = not text.endswith("\n")
    way_out = faults.of_line(text, file, last) if file else ""
    message = (
      f"{where}: {error.what}. A line must hold one whole JSON object.{way_out}"
    )
    if file and where == f"{file}:1" and text.lstrip()[:1] == "{":
      whole = faults.one_object(file)
      if whole is not None and not faults.has_rows(whole):
        raise unusable.NoRowsError(message) from error
    raise ValueError(message) from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{where}: a line must hold a JSON object, but this is {found(fields)}."
    )
  return fields
