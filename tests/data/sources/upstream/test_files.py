"""Upstream files: a malformed one is named, and nothing is written."""

import gzip
import json

import pytest

from perl_jax.data.sources import upstream as upstream_lib
from tests.data import shared_files
from tests.data.sources.upstream import cases


@pytest.mark.parametrize(
  ("name", "data", "message"),
  [
    ("reward_02.json.gz", b'[{"a": 1},', "reward_02.json.gz is not valid JSON"),
    (
      "reward_02.json.gz",
      b'{"a": 1}',
      "reward_02.json.gz must hold a JSON list",
    ),
    ("reward_02.json.gz", b'[{"a": 1}, 7]', "row 1 must be a JSON object.*7"),
    ("reward_02.json.gz", b"\xff\xfe", "reward_02.json.gz .*not a text file"),
    ("reward_02.json", b"\x1f\x8bxx", "reward_02.json .*not a text file"),
  ],
)
def test_a_malformed_file_is_named_and_leaves_nothing(
  copy, tmp_path, name, data, message
):
  (copy / "taskmaster_coffee/reward/reward_02.json.gz").unlink()
  cases.write(copy / "taskmaster_coffee/reward" / name, data)
  with pytest.raises(ValueError, match=message):
    cases.read(copy, tmp_path)
  assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_malformed_line_is_named(tmp_path):
  data = b'{"chosen": "a", "rejected": "b"}\n\n{"chosen"\n'
  cases.write(tmp_path / "data/hh_harmless/test.jsonl.gz", data)
  with pytest.raises(ValueError, match=r"test.jsonl.gz:3 is not valid JSON"):
    cases.read(tmp_path / "data", tmp_path, "hh_rlhf", "test")


@pytest.mark.shared_data
def test_upstream_files_are_read_as_they_are(tmp_path):
  copy = shared_files.find()
  expected = []
  for file in upstream_lib.TaskmasterCoffee.PARTS["reward"]:
    with gzip.open(copy / (file.local + ".gz"), "rt") as stream:
      expected += json.load(stream)
  assert len(expected) == 2453
  assert cases.read(copy, tmp_path) == expected


@pytest.mark.parametrize(
  ("folder", "data_dir"),
  [
    ("clone/harmless-base", "clone"),
    ("clone/harmless-base", "clone/harmless-base"),
    ("clone/helpful-online", "clone/helpful-online"),
  ],
)
def test_a_clone_of_the_repository_is_a_local_copy(tmp_path, folder, data_dir):
  row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"}
  data = (json.dumps(row) + "\n").encode()
  cases.write(tmp_path / folder / "test.jsonl.gz", data)
  found = cases.read(tmp_path / data_dir, tmp_path, "hh_rlhf", "test")
  assert found == [row]


def test_a_pointer_of_git_lfs_is_named(tmp_path):
  path = tmp_path / "clone/harmless-base/test.jsonl.gz"
  path.parent.mkdir(parents=True)
  path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n")
  with pytest.raises(ValueError, match=r"test\.jsonl\.gz is .*git lfs pull"):
    cases.read(tmp_path / "clone", tmp_path, "hh_rlhf", "test")


def test_a_missing_copy_says_where_a_clone_has_it(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"harmless-base/test\.jsonl,"):
    cases.read(tmp_path, tmp_path, "hh_rlhf", "test")
