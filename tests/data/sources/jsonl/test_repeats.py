"""Rows that are there more than once are named, and kept."""

import pytest

from perl_jax.data.sources.jsonl import files
from tests.data.sources.jsonl import cases

ROWS = list(cases.many("demonstrations", 10))


def test_a_file_that_is_there_twice(write, tmp_path):
  write(*ROWS, name="train.jsonl")
  write(*ROWS, name="train (1).jsonl")
  split = files.load(str(tmp_path), "demonstrations")
  (note,) = split.notes
  assert note.startswith(f"{tmp_path}: 10 of 20 rows repeat one of another")
  assert "train.jsonl:1, which repeats " in note and "(1).jsonl:1." in note
  assert len(split.train) + len(split.validation) == 20


def test_rows_of_one_file_are_counted(write):
  path = write(*ROWS, *ROWS[:3])
  split = files.load(path, "demonstrations")
  assert split.counts["repeated_rows"] == 3 and not split.notes
  # A file that is named for both sides is what was asked for.
  split = files.load(path, "demonstrations", validation_path=path)
  assert split.counts["validation_rows"] == 13 and not split.notes


def test_validation_rows_that_are_training_rows(write, tmp_path):
  write(*ROWS, name="train.jsonl")
  write(*ROWS[:2], {"prompt": "q3", "response": "b"}, name="test.jsonl")
  split = files.load(str(tmp_path), "demonstrations")
  (note,) = split.notes
  assert note.startswith(
    f"{tmp_path}: 2 of 3 validation rows are training rows as well, such as"
    f" {tmp_path}/test.jsonl:1, which is {tmp_path}/train.jsonl:1."
  )
  assert split.counts["shared_groups"] == 3


@pytest.mark.parametrize("kind", ["preferences", "labelled", "prompts"])
def test_rows_that_differ(write, kind):
  row = {"prompt": "q", "chosen": "a", "rejected": "b", "label": 1}
  row |= {"response": "a"} if kind == "labelled" else {}
  if kind == "labelled":
    del row["chosen"], row["rejected"]
  more = ({"chosen": "c"}, {"rejected": "c"})
  if kind == "labelled":
    more = ({"label": 0}, {"response": "c"})
  if kind == "prompts":
    row, more = {"prompt": "q", "answer": "1"}, ({"answer": "2"},)
  path = write(row, *(row | other for other in more))
  other = write({**row, "prompt": "r"}, name="other.jsonl")
  assert files.load(path, kind, validation_path=other).notes == ()
