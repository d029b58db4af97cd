"""Files of a directory, and which of them are validation rows."""

import os

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
    *(
      ([rows, held_out], [rows], [held_out], [])
      for rows, held_out in (
        ("trainset.jsonl", "testset.jsonl"),
        ("train/a.jsonl", "tests/a.jsonl"),
        ("rows.jsonl", "validate.jsonl"),
        ("rows.jsonl", "hold-out.jsonl"),
        ("rows.jsonl", "rows_heldout.jsonl"),
        ("myTrain.jsonl", "myTest.jsonl"),
        ("TRAIN.jsonl", "devSet2.jsonl"),
      )
    ),
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
    (
      ["datasets/a.jsonlines", "datasets/b.jl", "contest.ndjson"],
      ["contest.ndjson", "datasets/a.jsonlines", "datasets/b.jl"],
      [],
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


OF_A_LOCK = '{"host": "a", "pid": 1, "token": "b"}'
OF_A_RUN = '{"task": "sft"}'


@pytest.mark.parametrize(
  "files",
  [
    {"lock.json": OF_A_LOCK},
    {"config.json": OF_A_RUN, "command.txt": "perl_jax"},
    {"config.json": OF_A_RUN, "metrics.jsonl": "{}"},
    {"model.json": "{}", "checkpoints/4/_METADATA": ""},
  ],
)
def test_a_workdir_among_the_data_is_left_out(tmp_path, caplog, files):
  """Else a run reads its own samples, and others at each start."""
  caplog.set_level("INFO", logger="absl")
  make(tmp_path, "rows.jsonl", "a/run/samples.jsonl", "a/more.jsonl")
  for name, text in files.items():
    file = tmp_path / "a" / "run" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  assert found(tmp_path)[0] == ["a/more.jsonl", "rows.jsonl"]
  assert f"{tmp_path}/a/run: left out, as it is the workdir" in caplog.text
  # Who names it, or a file in it, gets what is there.
  samples = tmp_path / "a" / "run" / "samples.jsonl"
  assert samples in paths.find_files(str(samples.parent)).train
  assert paths.find_files(str(samples)).train == (samples,)


@pytest.mark.parametrize(
  "files",
  [
    {"config.json": '{"task": "sft"}'},
    {"config.json": '{"model_type": "llama"}', "metrics.jsonl": "{}"},
    {"config.json": "[", "lock.json": "{}"},
    {"lock.json": '{"host": "a"}', "model.json": "{}"},
  ],
)
def test_folders_of_others_are_read(tmp_path, files):
  make(tmp_path, "a/rows.jsonl")
  for name, text in files.items():
    (tmp_path / "a" / name).write_text(text)
  assert "a/rows.jsonl" in found(tmp_path)[0]


class TestRowsThatAreNotThere:
  def test_a_link_that_leads_nowhere(self, tmp_path):
    make(tmp_path, "train-0.jsonl")
    (tmp_path / "README.md").symlink_to("blobs/0")
    assert found(tmp_path)[0] == ["train-0.jsonl"]
    (tmp_path / "train-1.jsonl").symlink_to("../blobs/1")
    with pytest.raises(
      FileNotFoundError, match=r"1\.jsonl is a link to \.\./b"
    ):
      found(tmp_path)

  def test_links_to_folders_are_followed_once(self, tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    make(root, "a/0.jsonl", ".kept/2.jsonl")
    make(other, "1.jsonl")
    (root / "b").symlink_to(other)
    (other / "again").symlink_to(other)
    (other / "up").symlink_to(root)
    (root / "newest").symlink_to("a")
    (root / "two").symlink_to(".kept")
    assert found(root)[0] == ["a/0.jsonl", "b/1.jsonl", "two/2.jsonl"]

  def test_a_folder_that_may_not_be_read(self, tmp_path, monkeypatch):
    make(tmp_path, "a.jsonl", "sub/b.jsonl")
    scan = os.scandir

    def refusing(path):  # Permissions are nothing to root.
      if str(path).endswith("sub"):
        raise PermissionError(13, "Permission denied", str(path))
      return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match="sub cannot be read: Permission den"):
      found(tmp_path)

  def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch):
    make(tmp_path, "a.jsonl")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
      ValueError, match=r"a\.jsonl cannot be read: Permission"
    ):
      found(tmp_path)

  @pytest.mark.parametrize(
    ("names", "missing"),
    [
      (("t-00000-of-00003.jsonl", "t-00002-of-00003-ab.jsonl"), "00001"),
      (("a/1-of-3.json", "a/3-of-3.json"), "2"),
    ],
  )
  def test_shards_that_are_missing(self, tmp_path, caplog, names, missing):
    make(tmp_path, *names)
    assert len(found(tmp_path)[0]) == 2
    assert f"1 of the 3 files {tmp_path}" in caplog.text
    assert f"not there ({missing})" in caplog.text

  def test_no_shard_is_missing(self, tmp_path, caplog):
    make(tmp_path, "t-0-of-2.jsonl", "t-1-of-2.jsonl", "1-of-1.jsonl")
    assert len(found(tmp_path)[0]) == 3 and not caplog.text

  def test_files_that_are_left_out(self, tmp_path, caplog):
    make(tmp_path, "a.jsonl", "README", "LICENSE.txt", "make.py", "_SUCCESS")
    assert found(tmp_path)[0] == ["a.jsonl"] and not caplog.text
    make(tmp_path, "b.txt", "c.csv.gz", "part-00000", "d.jsonl.incomplete")
    assert found(tmp_path)[0] == ["a.jsonl"]
    first, second = (record.getMessage() for record in caplog.records)
    assert "b.txt, c.csv.gz, part-00000." in first
    assert "not finished them: d.jsonl.incomplete." in second

  @pytest.mark.parametrize(
    ("name", "message"),
    [
      ("train", "does not say .* add .jsonl to its name"),
      ("train.jsonl.part", "has not finished"),
    ],
  )
  def test_training_files_that_are_not_read(self, tmp_path, name, message):
    make(tmp_path, name)
    with pytest.raises(FileNotFoundError, match=message):
      found(tmp_path)
    make(tmp_path, "validation.jsonl")
    with pytest.raises(FileNotFoundError, match=f"no file to train.*{message}"):
      found(tmp_path)

  def test_a_pipe_is_no_file(self, tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="a pipe or a device"):
      found(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
  ("name", "told"),
  [
    ("train_test.jsonl", True),
    ("mytests/0.jsonl", True),
    ("dev/train.jsonl", False),
    ("latest.jsonl", False),
    ("invalidated.jsonl", False),
  ],
)
def test_training_files_that_are_called_like_others(tmp_path, name, told):
  for n in range(8):
    make(tmp_path, f"rows{n}.jsonl")
  make(tmp_path, name)
  notes = files.load(str(tmp_path), "prompts").notes
  expected = (
    f"{tmp_path}: trained on, whatever their names say of tests: {name}"
  )
  assert [note.startswith(expected) for note in notes] == [True] * told
