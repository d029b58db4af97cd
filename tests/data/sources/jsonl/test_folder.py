"""Directories as other programs write them: what is missing, and stale."""

import logging
import shutil

import pytest

from perl_jax.data.sources.jsonl import files, paths
from tests.data.sources.jsonl import cases, writing

ROWS = list(cases.many("demonstrations"))


@pytest.mark.parametrize("missing", [["train"], ["validation", "test"], []])
def test_splits_that_were_not_copied_are_in_the_log(tmp_path, caplog, missing):
  datasets = pytest.importorskip("datasets", reason="writes the splits")
  made = datasets.Dataset.from_list(ROWS)
  splits = ("train", "validation", "test")
  root = tmp_path / "data"
  datasets.DatasetDict(dict.fromkeys(splits, made)).save_to_disk(root)
  for name in missing:
    shutil.rmtree(root / name)
  with caplog.at_level(logging.WARNING, logger="absl"):
    files.load(str(root), "demonstrations")
  said = f"splits that are not there, and whose rows are not read: {missing}"
  said = said.translate(str.maketrans("", "", "[]'"))
  assert (f"{root / 'dataset_dict.json'} names {said}" in caplog.text) == (
    bool(missing)
  )


@pytest.mark.parametrize("content", ["", "{", "[]", '{"splits": 3}', "{}"])
def test_a_list_of_splits_may_be_damaged(tmp_path, content):
  writing.write(ROWS, tmp_path, "rows.parquet")
  (tmp_path / "dataset_dict.json").write_text(content)
  assert len(cases.read(str(tmp_path), "demonstrations")) == len(ROWS)


def test_a_table_of_delta_lake_is_refused(tmp_path):
  """A file of an older version is there until the table is cleaned."""
  root = tmp_path / "data" / "table"
  (root / "_delta_log").mkdir(parents=True)
  (root / "_delta_log/00000000000000000000.json").write_text("{}\n")
  writing.write(ROWS, root, "rows.parquet")
  for path in (root, root.parent):
    with pytest.raises(ValueError, match="Delta Lake") as caught:
      paths.find_files(str(path))
    assert str(root) in str(caught.value)


def test_what_spark_has_not_finished_is_left_out(tmp_path, caplog):
  """What has the rows of a task that was started twice, too."""
  folder = tmp_path / "_temporary" / "0" / "task_0"
  folder.mkdir(parents=True)
  for root in (tmp_path, folder):
    writing.write(ROWS, root, "rows.parquet")
  assert len(cases.read(str(tmp_path), "demonstrations")) == len(ROWS)
  assert f"{tmp_path / '_temporary'}: left out" in caplog.text
