"""Tables joined by `cat`, and streams whose writer was stopped."""

import logging

import pyarrow
import pytest
from pyarrow import parquet

from tests.data.sources.jsonl import cases, writing

ROWS = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(10)]
OPTIONS = [
  {},
  {"write_page_index": True},
  {"use_dictionary": False, "compression": "zstd", "row_group_size": 2},
  {"version": "1.0", "store_schema": False},
]


def parts(root, name, **options):
  """The bytes of two files of a format, of 4 rows and of 6."""
  found = []
  for rows in (ROWS[:4], ROWS[4:]):
    path, table = root / name, pyarrow.Table.from_pylist(rows)
    if options:
      parquet.write_table(table, path, **options)
    else:
      writing.write(rows, root, name)
    found.append(path.read_bytes())
  return found


def responses(path):
  return [
    r.turns[0]["content"] for r in cases.read(str(path), "demonstrations")
  ]


@pytest.mark.parametrize("name", ["rows.parquet", "file.arrow"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0), (0, 1, 0)])
def test_tables_that_are_joined_are_refused(tmp_path, name, order):
  """Every library reads the rows of one."""
  both = parts(tmp_path, name)
  path = tmp_path / name
  path.write_bytes(b"".join(both[i] for i in order))
  with pytest.raises(ValueError, match="one behind another") as caught:
    cases.read(str(path), "demonstrations")
  assert str(path) in str(caught.value)
  assert "Keep them apart, in one directory" in str(caught.value)


@pytest.mark.parametrize("options", OPTIONS)
def test_parquet_as_it_is_written_is_one(tmp_path, options):
  both = parts(tmp_path, "rows.parquet", **options or {"version": "2.6"})
  path = tmp_path / "rows.parquet"
  for content, rows in zip(both, (ROWS[:4], ROWS[4:]), strict=True):
    path.write_bytes(content)
    assert responses(path) == [row["response"] for row in rows]
  path.write_bytes(b"".join(both))
  with pytest.raises(ValueError, match="several Parquet files"):
    cases.read(str(path), "demonstrations")


def test_text_that_is_as_such_a_file_ends_is_text(tmp_path):
  rows = [row | {"response": "PAR1PAR1 ARROW1ARROW1"} for row in ROWS]
  for name in ("rows.parquet", "file.arrow"):
    writing.write(rows, tmp_path, name)
    assert len(responses(tmp_path / name)) == 10


def test_streams_that_are_joined_are_read(tmp_path, caplog):
  path = tmp_path / "stream.arrow"
  path.write_bytes(b"".join(parts(tmp_path, path.name)))
  assert responses(path) == [row["response"] for row in ROWS]
  assert "has no end" not in caplog.text
  path.write_bytes(path.read_bytes() + b"more")
  with pytest.raises(ValueError, match="damaged Arrow data"):
    cases.read(str(path), "demonstrations")


def test_a_stream_that_was_not_finished_is_in_the_log(tmp_path, caplog):
  """As a writer leaves it that is killed: whole batches, and no end."""
  path = tmp_path / "stream.arrow"
  writing.write(ROWS, tmp_path, path.name)
  content, found = path.read_bytes(), {}
  for size in range(8, len(content) + 1, 8):
    path.write_bytes(content[:size])
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
      try:
        found[size] = len(responses(path))
      except ValueError as error:
        assert "damaged" in str(error) or "is empty" in str(error)
        continue
    assert (f"{path}: the Arrow stream has no end" in caplog.text) == (
      size < len(content)
    )
  assert set(found.values()) == {3, 6, 9, 10}
