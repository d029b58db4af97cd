"""Names the format of a file that holds no rows for us, and the way out.

The ways out are commands that work as they stand, with what is installed
together with this package or with the usual tools of a shell.
"""

import pathlib
import shlex

# First bytes, and by them the format.
_MAGIC = (
  (b"PK\x03\x04", "zip"),
  (b"BZh", "bz2"),
  (b"\xfd7zXZ", "xz"),
  (b"7z\xbc\xaf", "7z"),
  (b"SQLite format 3", "sqlite"),
  (b"ORC", "orc"),
  (b"Obj\x01", "avro"),
  (b"FEA1", "feather1"),
  (b"\x89HDF", "hdf5"),
  (b"\x93NUMPY", "npy"),
  (b"\x80\x02", "pickle"),
  (b"\x80\x03", "pickle"),
  (b"\x80\x04", "pickle"),
  (b"\x80\x05", "pickle"),
  (b"version https://git-lfs", "lfs"),
  (b"<!doctype html", "html"),
  (b"<html", "html"),
  (b"\xff\xfe\0\0", "utf32"),
  (b"\0\0\xfe\xff", "utf32"),
  (b"\xff\xfe", "utf16"),
  (b"\xfe\xff", "utf16"),
)
# Extensions, for formats without such bytes, or with those of another one.
_SUFFIXES = {
  ".csv": "csv",
  ".tsv": "tsv",
  ".xlsx": "xlsx",
  ".ods": "xlsx",
  ".tar": "tar",
  ".tgz": "tar",
  ".pkl": "pickle",
  ".pickle": "pickle",
  ".pt": "pickle",
  ".npz": "npy",
  ".tfrecord": "tfrecord",
  ".array_record": "array_record",
  ".avro": "avro",
  ".orc": "orc",
  ".db": "sqlite",
  ".sqlite": "sqlite",
}
# Those of them that may have `.gz` behind them.
_UNPACKED = (".csv", ".tsv", ".tar")
_READ_CSV = (
  'python -c "from pyarrow import csv, parquet;'
  " parquet.write_table(csv.read_csv({file}, {options}"
  "parse_options=csv.ParseOptions(newlines_in_values=True{delimiter})),"
  ' {out})"'
)
_READ_ORC = (
  'python -c "from pyarrow import orc, parquet;'
  ' parquet.write_table(orc.read_table({file}), {out})"'
)
_FROM_PYTHON = (
  "Read it with the library that wrote it, and write one JSON object per line"
)
# By format: what it is called, and what to do with it.
_WAYS_OUT = {
  "csv": ("a CSV table", f"Convert it: {_READ_CSV}"),
  "tsv": ("a TSV table", f"Convert it: {_READ_CSV}"),
  "orc": ("an ORC table", f"Convert it: {_READ_ORC}"),
  "xlsx": ("a spreadsheet", "Save it as CSV, and convert that to Parquet."),
  "zip": ("a zip archive", "Unpack it first: unzip {path}"),
  "tar": ("a tar archive", "Unpack it first: tar xf {path}"),
  "7z": ("a 7z archive", "Unpack it first: 7z x {path}"),
  "bz2": ("packed with bzip2", "Unpack it first: bunzip2 {path}"),
  "xz": ("packed with xz", "Unpack it first: unxz {path}"),
  "sqlite": (
    "an SQLite database",
    "Convert a table of it: sqlite3 -json {path} 'select * from NAME' >"
    " {lines}",
  ),
  "avro": ("an Avro file", f"{_FROM_PYTHON}."),
  "hdf5": ("an HDF5 file", f"{_FROM_PYTHON}."),
  "npy": ("a NumPy file", f"{_FROM_PYTHON}."),
  "tfrecord": ("a TFRecord file", f"{_FROM_PYTHON}."),
  "array_record": ("an ArrayRecord file", f"{_FROM_PYTHON}."),
  "feather1": ("a Feather file of version 1", f"{_FROM_PYTHON}, or Parquet."),
  "pickle": (
    "a pickle, which can run code when it is read",
    f"{_FROM_PYTHON}.",
  ),
  "lfs": (
    "a pointer of Git LFS, not the data",
    "Fetch the data: git lfs pull, in the clone that it is in.",
  ),
  "html": (
    "a web page, not the data",
    "Download the file itself (behind 'raw' or 'download').",
  ),
  "utf16": (
    "text in UTF-16",
    "Convert it: iconv -f UTF-16 -t UTF-8 {path} > {lines}",
  ),
  "utf16le": (
    "text in UTF-16 without a mark",
    "Convert it: iconv -f UTF-16LE -t UTF-8 {path} > {lines}",
  ),
  "utf16be": (
    "text in UTF-16 without a mark",
    "Convert it: iconv -f UTF-16BE -t UTF-8 {path} > {lines}",
  ),
  "utf32": (
    "text in UTF-32",
    "Convert it: iconv -f UTF-32 -t UTF-8 {path} > {lines}",
  ),
}
# First two bytes of JSON in UTF-16 without a byte order mark.
_UNMARKED = {
  b"{\0": "utf16le", b"[\0": "utf16le", b"\0{": "utf16be", b"\0[": "utf16be",
}  # fmt: skip
FORMATS = ".jsonl or .jsonl.gz (or .zst), .json, .parquet or .arrow"


def format_of(path: pathlib.Path, start: bytes = b"") -> str:
  """Returns the format of a file as a key of the ways out, "" if unknown.

  Args:
    path: The file; its last extension counts.
    start: First bytes of the file, which count more; they may be left out.
  """
  suffix = path.suffix.lower()
  if suffix == ".gz":  # pyarrow and tar unpack these themselves
    suffix = path.with_suffix("").suffix.lower()
    suffix = suffix if suffix in _UNPACKED else ""
  by_name = _SUFFIXES.get(suffix, "")
  if by_name in ("xlsx", "pickle", "npy"):  # these may be zip archives
    return by_name
  if start[:2] in _UNMARKED:
    return _UNMARKED[start[:2]]
  lower = start.lstrip().lower()
  for magic, name in _MAGIC:
    if start.startswith(magic) or (name == "html" and lower.startswith(magic)):
      return name
  return by_name


def refusal(path: pathlib.Path, name: str) -> str:
  """Returns what a file is, what is read instead, and the way out."""
  what, way_out = _WAYS_OUT[name]
  parquet = path.with_name(f"{path.stem}.parquet")
  way_out = way_out.format(
    path=shlex.quote(str(path)),
    file=python_text(path),
    out=python_text(parquet),
    lines=lines_beside(path),
    options="",
    delimiter=r", delimiter='\t'" if name == "tsv" else "",
  )
  return f"{path} is {what}; rows are read from {FORMATS} files. {way_out}"


def lines_beside(path: pathlib.Path) -> str:
  """Returns a name for rows that are made of a file, other than its own."""
  return "lines.jsonl" if path.name == "rows.jsonl" else "rows.jsonl"


def python_text(path: pathlib.Path) -> str:
  """Returns a path as a Python text that can stand in double quotes."""
  text = repr(str(path))
  return text.replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
