"""The head of GGUF files; the reference is `gguf.GGUFReader`."""

import struct

import pytest

pytest.importorskip("gguf", reason="needs the package gguf")

import gguf

from perl_jax.data.text.gguf_metadata import read_metadata
from tests.data.text import gguf_files


def write(path, **options):
  """A file with a value of every type."""
  writer = gguf.GGUFWriter(path, "llama", **options)
  for name in ("uint8", "uint16", "uint32", "uint64"):
    getattr(writer, f"add_{name}")(name, 200)
  for name in ("int8", "int16", "int32", "int64"):
    getattr(writer, f"add_{name}")(name, -7)
  writer.add_float32("float32", 0.1)
  writer.add_float64("float64", 0.1)
  writer.add_bool("yes", True)
  writer.add_bool("no", False)
  writer.add_string("text", "naïve ▁ 😀")
  writer.add_array("texts", ["", "a b", "日本"])
  writer.add_array("numbers", [1, -2, 3])
  writer.add_array("scores", [0.5, -1e9])
  writer.add_array("flags", [True, False])
  gguf_files.finish(writer)
  return path


@pytest.mark.parametrize("endian", gguf.GGUFEndian)
def test_every_type_is_read_as_gguf_reads_it(endian, tmp_path):
  path = write(tmp_path / "m.gguf", endianess=endian)
  fields = gguf.GGUFReader(path).fields
  expected = {
    key: field.contents()
    for key, field in fields.items()
    if not key.startswith("GGUF.")
  }
  assert len(expected) == 18
  found = read_metadata(path)
  assert found == expected
  assert {k: type(v) for k, v in found.items()} == {
    k: type(v) for k, v in expected.items()
  }


def test_a_file_cut_anywhere_is_refused(tmp_path):
  """As a download that broke off; the error says where."""
  whole = write(tmp_path / "m.gguf").read_bytes()
  head = len(whole.rstrip(b"\0"))
  cut = tmp_path / "cut.gguf"
  for length in range(1, head, 7):
    cut.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"cut\.gguf") as error:
      read_metadata(cut)
    assert "ownload it again" in str(error.value)
  assert "flags" in str(error.value)
  cut.write_bytes(b"")
  with pytest.raises(ValueError, match="no GGUF file"):
    read_metadata(cut)


def test_other_files_and_versions_are_refused(tmp_path):
  path = tmp_path / "m.gguf"
  with pytest.raises(FileNotFoundError, match=r"m\.gguf"):
    read_metadata(path)
  path.write_bytes(b"PK\3\4 and more")
  with pytest.raises(ValueError, match=r"m\.gguf does not begin with GGUF"):
    read_metadata(path)
  for version in (1, 4):
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(
      ValueError, match=f"version {version}; versions 2 and 3"
    ):
      read_metadata(path)


def head(*values):
  """A file with one key, "k", and what follows it."""
  return (
    b"GGUF"
    + struct.pack("<IQQ", 3, 0, len(values))
    + b"".join(struct.pack("<Q", 1) + b"k" + value for value in values)
  )


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (head(struct.pack("<IB", 7, 1), struct.pack("<IB", 7, 1)), "two values"),
    (head(struct.pack("<I", 13)), "unknown type 13"),
    (head(struct.pack("<IQ", 8, 1 << 60)), "damaged at k"),
    (head(struct.pack("<IIQ", 9, 5, 1 << 60)), "damaged at k"),
    (head(struct.pack("<IQ", 8, 1) + b"\xff"), "damaged at k"),
  ],
)
def test_damage_is_refused(data, message, tmp_path):
  path = tmp_path / "m.gguf"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=rf"m\.gguf.*{message}"):
    read_metadata(path)
