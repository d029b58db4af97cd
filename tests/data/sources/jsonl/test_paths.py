"""Files of a directory, and which of them are validation rows."""

import pytest

from perl_jax.data.sources.jsonl import files, paths
from tests.data.sources.jsonl import cases, writing
from tests.data.text.messages import user


def make(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"prompt": "{name}"}}\n')


def found(root):
  return [
    [str(file.relative_to(root)) for file in files]
    for files in paths.find_files(str(root))
  ]


@pytest.mark.parametrize(
  ("names", "train", "validation", "unused"),
  [
    (["b.jsonl", "a.json", "README.md"], ["a.json", "b.jsonl"], [], []),
    (["train.jsonl", "val.jsonl"], ["train.jsonl"], ["val.jsonl"], []),
    (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"], []),
    (
      ["train/0.jsonl", "validation/0.jsonl", "test/0.jsonl"],
      ["train/0.jsonl"],
      ["validation/0.jsonl"],
      ["test/0.jsonl"],
    ),
    (
      [
        "data/train_sft-00001-of-00002.jsonl",
        "data/train_sft-00000-of-00002.jsonl",
        "data/test_sft-00000-of-00001.jsonl",
      ],
      [
        "data/train_sft-00000-of-00002.jsonl",
        "data/train_sft-00001-of-00002.jsonl",
      ],
      ["data/test_sft-00000-of-00001.jsonl"],
      [],
    ),
    (["test.jsonl"], ["test.jsonl"], [], []),
    (["rows.jsonl", "dev.jsonl"], ["rows.jsonl"], ["dev.jsonl"], []),
    # Words are whole; the name of the file counts more than that of a folder.
    (
      ["latest.jsonl", "values.jsonl"],
      ["latest.jsonl", "values.jsonl"],
      [],
      [],
    ),
    (
      ["test/train.jsonl", "test/valid.jsonl"],
      ["test/train.jsonl"],
      ["test/valid.jsonl"],
      [],
    ),
    # What `datasets` and repositories put beside the rows.
    (
      [
        "train/data-00000-of-00001.json",
        "train/state.json",
        "train/dataset_info.json",
        "dataset_dict.json",
        ".git/config.json",
        ".cache/rows.jsonl",
      ],
      ["train/data-00000-of-00001.json"],
      [],
      [],
    ),
  ],
)
def test_parts_of_a_directory(tmp_path, names, train, validation, unused):
  make(tmp_path, *names)
  assert found(tmp_path) == [train, validation, unused]


def test_validation_files_are_the_validation_rows(tmp_path):
  make(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl")
  split = files.load(str(tmp_path), "prompts")
  assert [row.prompt for row in split.train] == [(user("train.jsonl"),)]
  assert [row.prompt for row in split.validation] == [(user("dev.jsonl"),)]
  assert split.counts == {
    "files": 1,
    "rows": 1,
    "unused_files": 1,
    "validation_files": 1,
    "validation_rows": 1,
  }
  # A path of its own says otherwise.
  other = str(tmp_path / "test.jsonl")
  split = files.load(str(tmp_path), "prompts", validation_path=other)
  assert [row.prompt for row in split.train] == [(user("train.jsonl"),)]
  assert [row.prompt for row in split.validation] == [(user("test.jsonl"),)]


def test_a_stage_whose_files_are_not_divided_has_a_fold(tmp_path):
  preferences = list(cases.many("preferences", 10))
  writing.write(preferences, tmp_path, "rows.jsonl")
  make(tmp_path, "train.jsonl", "val.jsonl")
  split = files.load(str(tmp_path), "preferences")
  assert split.train and split.validation
  assert len(split.validation) + len(split.train) == 10


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("README.md", r"no \.jsonl or .* file in it\.$"),
    ("rows.csv", r"no \.jsonl .*rows\.csv is a CSV table.* Convert it"),
  ],
)
def test_a_directory_without_rows(tmp_path, name, message):
  make(tmp_path, name)
  with pytest.raises(FileNotFoundError, match=message):
    paths.find_files(str(tmp_path))


def test_files_of_other_formats_beside_those_that_are_read(tmp_path, caplog):
  make(tmp_path, "validation.jsonl")
  (tmp_path / "notes.md").write_text("x")
  assert found(tmp_path)[0] == ["validation.jsonl"] and not caplog.text
  (tmp_path / "more.jsonl.xz").write_bytes(b"\xfd7zXZ\0")
  assert found(tmp_path)[0] == ["validation.jsonl"]
  assert "left out" in caplog.text and "more.jsonl.xz" in caplog.text
  (tmp_path / "train.csv").write_text("prompt\nq\n")
  with pytest.raises(FileNotFoundError, match=r"train\.csv is a CSV table"):
    found(tmp_path)
  make(tmp_path, "train.jsonl")
  assert found(tmp_path)[:2] == [["train.jsonl"], ["validation.jsonl"]]
