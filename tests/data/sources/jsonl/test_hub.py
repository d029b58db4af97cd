"""Data sets by hf://, from local directories."""

import json
import sys

import pytest

from perl_jax.data.sources.jsonl import files
from tests.data.sources.jsonl import cases
from tests.data.text.messages import user

NEEDS = "reads data sets of the hub; pip install datasets"


@pytest.fixture
def local(tmp_path, monkeypatch):
  """A directory with two splits, and the cache of `datasets` in another."""
  datasets = pytest.importorskip("datasets", reason=NEEDS)
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  folder = tmp_path / "name"
  folder.mkdir()
  for split, count in (("train", 6), ("test", 2)):
    rows = [{"prompt": f"{split} {n}", "n": n} for n in range(count)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)
  return folder


def test_splits_are_named_as_files_are(local):
  split = files.load(f"hf://{local}", "prompts")
  assert [r.prompt for r in split.train] == [
    (user(f"train {n}"),) for n in range(6)
  ]
  assert [r.prompt for r in split.validation] == [
    (user(f"test {n}"),) for n in range(2)
  ]
  assert split.train[2].id == f"hf://{local}/train:3"
  assert split.train[2].fields == {"prompt": "train 2", "n": 2}


def test_a_split_and_an_option(local):
  rows = cases.read(f"hf://{local}?split=train[2:4]", "prompts")
  assert [r.fields["n"] for r in rows] == [2, 3]
  with pytest.raises(ValueError, match="may follow config, split, revision"):
    files.load(f"hf://{local}?spilt=train", "prompts")


def test_what_datasets_refuses_is_one_line(local):
  with pytest.raises(ValueError, match="could not be loaded") as error:
    files.load(f"hf://{local}/absent", "prompts")
  assert "\n" not in str(error.value)


def test_what_save_to_disk_wrote_is_a_directory(local, tmp_path):
  datasets = pytest.importorskip("datasets", reason=NEEDS)
  loaded = datasets.load_dataset(str(local))
  loaded.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
  split = files.load(str(tmp_path / "saved"), "prompts")
  assert [r.fields["n"] for r in split.train] == list(range(6))
  assert [r.fields["n"] for r in split.validation] == [0, 1]
  assert split.counts["files"] == 2


def test_without_the_package_the_command_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ValueError, match="pip install datasets"):
    files.load("hf://owner/name", "prompts")
