"""What is packed twice, or packed and no text: the command that unpacks it."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile

import pyarrow
import pytest

from tests.data.sources.jsonl import cases, writing

ROWS = list(cases.many("demonstrations"))
LINES = b"".join(f"{json.dumps(row)}\n".encode() for row in ROWS)


def zstd(data):
  return pyarrow.compress(data, codec="zstd", asbytes=True)


def table(root, name):
  writing.write(ROWS, root, name)
  data = (root / name).read_bytes()
  (root / name).unlink()
  return data


def refused(path):
  with pytest.raises(ValueError, match=path.name) as caught:
    cases.read(str(path), "demonstrations")
  return str(caught.value)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize(
  "inner", ["rows.parquet", "file.arrow", "stream.arrow", gzip.compress, zstd]
)
@pytest.mark.parametrize("name", ["a b.jsonl.gz", "rows.jsonl", "x.parquet"])
def test_the_command_unpacks_it(tmp_path, pack, inner, name):
  data = table(tmp_path, inner) if isinstance(inner, str) else inner(LINES)
  path = tmp_path / name
  path.write_bytes(pack(data))
  command = refused(path).rsplit("Unpack it first: ", 1)[1]
  if not shutil.which(command.split()[0]):
    pytest.skip(f"{command.split()[0]} is not installed here")
  subprocess.run(command, shell=True, check=True, cwd=tmp_path)
  (made,) = (file for file in tmp_path.iterdir() if file != path)
  assert len(cases.read(str(made), "demonstrations")) == len(ROWS)


def test_an_archive_that_is_called_like_lines(tmp_path):
  path = tmp_path / "rows.jsonl.gz"
  with tarfile.open(path, "w:gz") as archive:
    entry = tarfile.TarInfo("rows.jsonl")
    entry.size = len(LINES)
    archive.addfile(entry, io.BytesIO(LINES))
  message = refused(path)
  assert "is a tar archive" in message
  command = message.rsplit("Unpack it first: ", 1)[1]
  subprocess.run(command, shell=True, check=True, cwd=tmp_path)
  made = tmp_path / "rows.jsonl"
  assert len(cases.read(str(made), "demonstrations")) == len(ROWS)


def test_a_frame_that_is_skipped_stands_before_the_rows(tmp_path):
  """As pzstd writes them, one before each frame."""
  half = LINES.index(b"\n", len(LINES) // 2) + 1
  skipped = b"\x50\x2a\x4d\x18\x04\0\0\0size"
  path = tmp_path / "rows.jsonl.zst"
  path.write_bytes(
    b"".join(skipped + zstd(part) for part in (LINES[:half], LINES[half:]))
  )
  assert len(cases.read(str(path), "demonstrations")) == len(ROWS)
