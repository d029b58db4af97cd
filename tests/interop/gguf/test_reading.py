"""Files that are damaged or of another kind, and every type of tensor."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.interop.gguf import reading  # noqa: E402
from tests.interop.gguf import models  # noqa: E402

Kind = gguf.GGMLQuantizationType


def one_tensor(path, stored, kind, *, fields=(), endian=None):
  options = {} if endian is None else {"endianess": endian}
  writer = gguf.GGUFWriter(path, "llama", **options)
  for key, value in fields:
    writer.add_string(key, value)
  writer.add_tensor("blk.0.attn_q.weight", stored, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def refused(path, *words, error=ValueError):
  with pytest.raises(error) as caught:
    reading.File(path)
  for word in (str(path), *words):
    assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
  "kind",
  ["F32", "F16", "BF16", *sorted(k.name for k in gguf.quants._type_traits)],
)
def test_values_are_those_of_the_library(kind, tmp_path, rng):
  """Blocks of random bytes: each is some number, finite or not."""
  block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
  stored = rng.integers(0, 120, (6, 512 // block * size)).astype(np.uint8)
  if kind in ("F32", "F16"):
    stored = stored.view({"F32": np.float32, "F16": np.float16}[kind])
  path = one_tensor(tmp_path / "t.gguf", stored, Kind[kind])
  with np.errstate(all="ignore"):
    (tensor,) = gguf.GGUFReader(path).tensors
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    file = reading.File(path)
    whole = file.read("blk.0.attn_q.weight")
    some = file.rows("blk.0.attn_q.weight", 2, 5)
  assert whole.dtype == np.float32 and whole.shape == (6, 512)
  np.testing.assert_array_equal(whole, expected)
  np.testing.assert_array_equal(some, expected[2:5])


def test_cut_off_anywhere(tmp_path):
  """No prefix of a file is taken for a file, and none ends in a traceback."""
  whole = tmp_path / "whole.gguf"
  models.write(whole, "llama_tiny")
  content = whole.read_bytes()
  path = tmp_path / "cut.gguf"
  sizes = [*range(0, 64, 5), *range(64, len(content), 9973), len(content) - 33]
  for size in sizes:
    path.write_bytes(content[:size])
    refused(path)


def test_no_gguf_file_at_all(tmp_path):
  refused(tmp_path / "none.gguf", error=FileNotFoundError)
  (tmp_path / "pickle.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
  refused(tmp_path / "pickle.gguf", "does not begin with GGUF")


def test_other_machines_and_other_kinds(tmp_path):
  stored = np.zeros((2, 32), np.float32)
  path = tmp_path / "t.gguf"
  one_tensor(path, stored, Kind.F32, endian=gguf.GGUFEndian.BIG)
  refused(path, "big-endian")
  one_tensor(path, stored, Kind.F32, fields=[("general.type", "adapter")])
  refused(path, "general.type='adapter'", "no language model")
  models.write(path, "llama_tiny", fields={"split.count": 3})
  refused(path, "split.count=3", "llama-gguf-split --merge")
  models.write(path, "llama_tiny", fields={"split.count": "three"})
  refused(path, "split.count='three'")


def test_a_type_that_is_not_known(tmp_path):
  path = one_tensor(
    tmp_path / "t.gguf", np.zeros((2, 32), np.float32), Kind.F32
  )
  content = path.read_bytes()
  name = b"blk.0.attn_q.weight"
  at = content.index(name) + len(name) + 4 + 2 * 8
  for number, words in ((250, "a newer one"), (24, "stored as I8")):
    path.write_bytes(
      content[:at] + number.to_bytes(4, "little") + content[at + 4 :]
    )
    refused(path, "blk.0.attn_q.weight", words)


def test_without_the_library(tmp_path, monkeypatch):
  models.write(tmp_path / "t.gguf", "llama_tiny")
  monkeypatch.setitem(__import__("sys").modules, "gguf", None)
  with pytest.raises(ValueError, match="pip install"):
    reading.File(tmp_path / "t.gguf")
