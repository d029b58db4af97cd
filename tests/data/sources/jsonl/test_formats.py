"""Rows through every file format, and files that hold none."""

import gzip
import pathlib
import pickle
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import csv, orc

from perl_jax.data.sources.jsonl import files, formats
from tests.data.sources.jsonl import cases, writing
from tests.data.text.messages import assistant, user

ROWS = [
  {"messages": [user(f"é\u2028 {n}?"), assistant("a\nb")], "n": n}
  for n in range(7)
]


def numbered(path):
  found = list(formats.rows(pathlib.Path(path)))
  return [where.rsplit(":", 1)[1] for where, _ in found], [r for _, r in found]


class TestRows:
  @pytest.mark.parametrize("name", writing.FORMATS[:-1])
  def test_are_the_same_in_every_format(self, tmp_path, name):
    numbers, rows = numbered(writing.write(ROWS, tmp_path, name))
    assert rows == ROWS
    assert numbers == list("1234567")

  @pytest.mark.parametrize("name", writing.FORMATS)
  def test_become_the_same_records(self, tmp_path, name):
    path = writing.write(ROWS, tmp_path, name)
    found = cases.read(path, "prompts")
    expected = cases.read(
      writing.write(ROWS, tmp_path, "other.jsonl")
      if name == "rows.jsonl"
      else writing.write(ROWS, tmp_path, "rows.jsonl"),
      "prompts",
    )
    assert [r.prompt for r in found] == [r.prompt for r in expected]
    assert [r.reference for r in found] == [r.reference for r in expected]
    assert [r.fields for r in found] == ROWS

  def test_a_table_of_many_batches_keeps_its_order(self, tmp_path):
    rows = [{"prompt": str(n)} for n in range(2500)]
    for name in ("rows.parquet", "stream.arrow"):
      assert numbered(writing.write(rows, tmp_path, name))[1] == rows

  def test_formats_are_recognised_by_their_bytes(self, tmp_path):
    path = writing.write(ROWS, tmp_path, "rows.parquet")
    other = pathlib.Path(path).rename(tmp_path / "rows.jsonl")
    assert numbered(other)[1] == ROWS

  def test_zstd_in_two_frames(self, tmp_path):
    whole = b"".join(
      pathlib.Path(writing.write(part, tmp_path, "rows.jsonl.zst")).read_bytes()
      for part in (ROWS[:3], ROWS[3:])
    )
    (tmp_path / "rows.jsonl.zst").write_bytes(whole)
    assert numbered(tmp_path / "rows.jsonl.zst")[1] == ROWS

  def test_an_empty_list_or_table_is_an_empty_file(self, tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match=r"rows\.json is empty"):
      files.load(str(tmp_path / "rows.json"), "prompts")


class TestRefusals:
  """What a file is, and a way out that works."""

  @pytest.mark.parametrize(
    ("name", "data", "what"),
    [
      ("rows.zip", b"PK\x03\x04...", r"a zip archive.* unzip \S+rows\.zip"),
      ("rows.xlsx", b"PK\x03\x04...", "a spreadsheet"),
      ("rows.jsonl.bz2", b"BZh91AY", r"bzip2.* bunzip2"),
      ("rows.db", b"SQLite format 3\0", r"SQLite.* sqlite3 -json"),
      ("rows.jsonl", "a".encode("utf-16"), r"UTF-16.* iconv -f UTF-16"),
      ("rows.pkl", pickle.dumps([{"prompt": "a"}]), "a pickle.* run code"),
      (
        "rows.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "pointer of Git LFS.* git lfs pull",
      ),
      ("rows.json", b"\n<!DOCTYPE html><html>", "a web page"),
      ("rows.array_record", b"\0\0", "an ArrayRecord file"),
      ("rows.tar.gz", gzip.compress(b"rows.jsonl\0", mtime=0), "tar xf "),
    ],
  )
  def test_other_formats_are_named(self, tmp_path, name, data, what):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=what) as error:
      files.load(str(tmp_path / name), "prompts")
    assert f"{name} is" in str(error.value)
    assert "UTF-8 text" not in str(error.value)
    assert ".parquet or .arrow" in str(error.value)

  def test_the_conversions_of_tables_work_as_they_stand(self, tmp_path):
    table = pyarrow.table({"prompt": ["a, b", "two\nlines"], "n": [1, 2]})
    for name, write in (
      ("my rows$.csv", csv.write_csv),
      (
        "rows.tsv",
        lambda table, path: csv.write_csv(
          table, path, csv.WriteOptions(delimiter="\t")
        ),
      ),
      ("rows.orc", orc.write_table),
      (
        "rows.csv.gz",
        lambda table, path: csv.write_csv(
          table, pyarrow.output_stream(str(path), compression="gzip")
        ),
      ),
    ):
      path = tmp_path / name
      write(table, path)
      with pytest.raises(ValueError, match="Convert it: python -c") as error:
        files.load(str(path), "prompts")
      command = str(error.value).split("Convert it: ")[1]
      command = command.replace("python", sys.executable, 1)
      subprocess.run(["bash", "-c", command], check=True)
      assert numbered(path.with_suffix(".parquet"))[1] == table.to_pylist()

  @pytest.mark.parametrize("name", writing.FORMATS[3:-1])
  def test_damaged_files(self, tmp_path, name):
    path = pathlib.Path(writing.write(ROWS * 50, tmp_path, name))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=rf"{name}: (broken|damaged)"):
      files.load(str(path), "prompts")

  @pytest.mark.parametrize(
    ("text", "message"),
    [
      ('[{"prompt": "a"},\n {"prompt"]', r"rows\.json:2: .* at column 11"),
      ('[{"prompt": "a"}, "b"]', r"rows\.json:2: an item .* but is \"b\""),
      ("[" * 100_000, "not usable JSON"),
      ('{\n "prompt": "a"\n}', r"rows\.json:1: .* jq -c \."),
    ],
  )
  def test_malformed_lists(self, tmp_path, text, message):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=message):
      files.load(str(tmp_path / "rows.json"), "prompts")

  def test_a_list_that_is_not_utf8(self, tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[\n{"prompt": "a"},\n{"prompt": "\xe9"}\n]')
    with pytest.raises(ValueError, match=r"rows\.json:3: not UTF-8 .*Save"):
      files.load(str(path), "prompts")

  def test_packed_text_that_is_not_utf8(self, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n'))
    with pytest.raises(ValueError, match=r"gz:2: not UTF-8"):
      files.load(str(path), "prompts")
