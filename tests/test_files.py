"""Files that are written whole or not at all, and lines that are no JSON."""

import datetime
import decimal
import json

import pytest

from perl_jax import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "scores.jsonl"
  files.write_jsonl(path, [{"score": 0.5, "label": 1}])
  with pytest.raises(ValueError, match="cannot be written"):
    files.write_jsonl(path, [{"score": 0.1}, {"score": object()}])
  with pytest.raises(UnicodeEncodeError):
    files.write_text(path, "half a pair: \ud800")
  assert path.read_text() == '{"score": 0.5, "label": 1}\n'
  assert [p.name for p in tmp_path.iterdir()] == ["scores.jsonl"]


def test_text_of_any_kind_survives(tmp_path):
  text = "caf\u00e9 \u2028 \ud800 <b>\n"
  files.write_jsonl(tmp_path / "t.jsonl", [{"text": text}])
  assert files.read_jsonl(tmp_path / "t.jsonl") == [{"text": text}]


def test_read_jsonl_names_file_and_line(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"a": 1}\n\n{"a": 2\n{"a": 3}\n')
  with pytest.raises(ValueError, match=r"x\.jsonl:3: not a JSON object"):
    files.read_jsonl(path)
  with pytest.raises(ValueError, match=r"x\.jsonl:3"):
    files.read_jsonl(path, torn_end=True)
  path.write_text('{"a": 1}\n[1]\n')
  with pytest.raises(ValueError, match=r"x\.jsonl:2.*is list, not an object"):
    files.read_jsonl(path)
  path.write_bytes(b'{"a": 1}\n{"b": "\xff"}\n')
  with pytest.raises(ValueError, match=r"x\.jsonl:2"):
    files.read_jsonl(path)
  path.write_text('{"a": 1}\n{"a"')
  assert files.read_jsonl(path, torn_end=True) == [{"a": 1}]
  with pytest.raises(FileNotFoundError):
    files.read_jsonl(tmp_path / "none.jsonl")


def test_values_that_json_has_no_type_for():
  """As they are in a row of Parquet that is written back beside a score."""
  at = datetime.datetime(2024, 1, 2, 3, 4, 5)
  row = {
    "at": at, "on": at.date(), "when": at.time(),
    "price": decimal.Decimal("1.5"),
    "took": datetime.timedelta(seconds=90), "text": b"abc", "raw": b"\xff\x00",
  }  # fmt: skip
  assert json.loads(files.json_line(row)) == {
    "at": "2024-01-02T03:04:05", "on": "2024-01-02", "when": "03:04:05",
    "price": 1.5, "took": "0:01:30", "text": "abc", "raw": "/wA=",
  }  # fmt: skip
