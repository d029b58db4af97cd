"""Writes rows in every file format, with the libraries that people use."""

import gzip
import json

import pyarrow
from pyarrow import parquet


def _lines(rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _list(rows):
  return json.dumps(rows, indent=1).encode()


def _zstd(data):
  return pyarrow.compress(data, codec="zstd", asbytes=True)


def _stream(path, table):
  """Writes an Arrow stream, as `datasets` does into its cache and to disk."""
  with (
    pyarrow.OSFile(str(path), "wb") as file,
    pyarrow.ipc.new_stream(file, table.schema) as writer,
  ):
    writer.write_table(table, max_chunksize=3)


def _file(path, table):
  with (
    pyarrow.OSFile(str(path), "wb") as file,
    pyarrow.ipc.new_file(file, table.schema) as writer,
  ):
    writer.write_table(table, max_chunksize=3)


def _parquet(path, table):
  parquet.write_table(table, path, row_group_size=3)


_BYTES = {
  "rows.jsonl": _lines,
  "lines.json": _lines,
  "rows.json": _list,
  "rows.jsonl.gz": lambda rows: gzip.compress(_lines(rows)),
  "rows.json.gz": lambda rows: gzip.compress(_list(rows)),
  "rows.jsonl.zst": lambda rows: _zstd(_lines(rows)),
  "rows.json.zst": lambda rows: _zstd(_list(rows)),
}
_TABLES = {
  "rows.parquet": _parquet,
  "stream.arrow": _stream,
  "file.arrow": _file,
}
FORMATS = (*_BYTES, *_TABLES, "shards")


def write(rows, root, name):
  """Writes rows into a new file or directory of `root`, and returns its path.

  Args:
    rows: The rows; those of a table all get the fields of each other.
    root: A directory.
    name: One of `FORMATS`.
  """
  path = root / name
  if name in _BYTES:
    path.write_bytes(_BYTES[name](rows))
  elif name in _TABLES:
    _TABLES[name](path, pyarrow.Table.from_pylist(rows, _schema(rows)))
  else:
    path.mkdir()
    half = (len(rows) + 1) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
      if part:
        table = pyarrow.Table.from_pylist(part, _schema(rows))
        _parquet(path / f"data-0000{number}-of-00002.parquet", table)
  return str(path)


def _schema(rows):
  """The fields of all rows: `from_pylist` looks at the first alone."""
  fields = {}
  for row in rows:
    fields |= dict.fromkeys(row)
  columns = {name: [row.get(name) for row in rows] for name in fields}
  return pyarrow.table(columns).schema
