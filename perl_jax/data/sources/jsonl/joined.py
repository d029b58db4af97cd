"""Tables that stand one behind another in a file, as `cat` joins files.

That makes one file of two with lines, and so it is done with tables. What says
where the rows of Parquet and of an Arrow file are stands at its end, and counts
from its start: every library reads the rows of one table alone, and says
nothing. Arrow streams are read from start to end, so that they can be joined.
"""

import contextlib
import mmap
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import logging

# What a file ends with, and the next one begins with.
_PARQUET, _ARROW = b"PAR1" + b"PAR1", b"ARROW1" + b"ARROW1\0\0\xff\xff\xff\xff"
# Of Parquet, behind the description at its end: its length, and PAR1.
_TAIL = 8
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def require_one_parquet(file: pathlib.Path, described: Any) -> None:
  """Checks that a Parquet file is one table.

  Between the last rows and what describes them there is an index or nothing,
  and in a joined file as many bytes more as the tables before it have.

  Args:
    file: The file.
    described: Its `pyarrow.parquet.FileMetaData`.

  Raises:
    ValueError: It is several.
  """
  end = 0
  for i in range(described.num_row_groups):
    group = described.row_group(i)
    for column in map(group.column, range(group.num_columns)):
      first = column.data_page_offset
      if column.has_dictionary_page:
        first = min(first, column.dictionary_page_offset or first)
      end = max(end, first + column.total_compressed_size)
  size = file.stat().st_size - _TAIL - described.serialized_size
  with _mapped(file) as content:
    if content.find(_PARQUET, 0, max(size - end, 0) + len(_PARQUET)) >= 0:
      raise ValueError(_refusal(file, "Parquet"))


def require_one_arrow(file: pathlib.Path) -> None:
  """Checks that an Arrow file, which is no stream, is one table.

  Raises:
    ValueError: It is several.
  """
  with _mapped(file) as content:
    if content.find(_ARROW) >= 0:
      raise ValueError(_refusal(file, "Arrow"))


def streams(opened: Any, file: pathlib.Path) -> Iterator[Any]:
  """Yields the record batches of all Arrow streams in a file.

  A program that is stopped while it writes leaves a stream without an end,
  which is valid; the log says so, since rows may be missing.

  Args:
    opened: The file as `pyarrow.memory_map` opens it.
    file: Its path, for the log.
  """
  import pyarrow

  while opened.tell() < opened.size():
    yield from pyarrow.ipc.open_stream(opened)
    opened.seek(opened.tell() - len(_STREAM_END))
    if opened.read(len(_STREAM_END)) != _STREAM_END:
      logging.warning(
        "%s: the Arrow stream has no end: was what wrote it stopped, or the"
        " file not copied whole? Its last rows may be missing.",
        file,
      )


@contextlib.contextmanager
def _mapped(file: pathlib.Path) -> Iterator[mmap.mmap]:
  with (
    file.open("rb") as opened,
    mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
  ):
    yield content


def _refusal(file: pathlib.Path, what: str) -> str:
  return (
    f"{file} is several {what} files, one behind another, as `cat` joins them:"
    " the rows of one alone would be read. Keep them apart, in one directory."
  )
