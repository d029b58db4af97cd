"""Users' own data: every shape, every error, and the split."""

import gzip

import pytest

from perl_jax.data.sources.jsonl import files
from perl_jax.data.sources.jsonl import rows as rows_lib
from tests.data.sources.jsonl import cases


class TestFiles:
  def test_gzip_blank_lines_bom_and_line_separators(self, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    text = '\ufeff{"prompt": "a\u2028b"}\n\n  \n{"prompt": "c"}'
    path.write_bytes(gzip.compress(text.encode()))
    rows = cases.read(str(path), "prompts")
    assert [row.prompt[0]["content"] for row in rows] == ["a\u2028b", "c"]
    assert [row.id.rsplit(":", 1)[1] for row in rows] == ["1", "4"]

  def test_a_directory_is_read_in_the_order_of_names(self, write, tmp_path):
    write({"prompt": "2"}, name="b.jsonl")
    write({"prompt": "1"}, name="a.jsonl")
    write("not data", name="README.md")
    rows = cases.read(str(tmp_path), "prompts")
    assert [row.prompt[0]["content"] for row in rows] == ["1", "2"]

  def test_kinds_of_one_directory_are_split_in_one_way(self, write, tmp_path):
    write(*cases.many("preferences", 12), name="a.jsonl")
    write(*cases.many("labelled", 30), name="b.jsonl")
    splits = [
      files.load(str(tmp_path), kind, seed=3)
      for kind in ("preferences", "labelled", "prompts")
    ]
    train = {row.group for split in splits for row in split.train}
    held_out = {row.group for split in splits for row in split.validation}
    assert len(train) == 24 and len(held_out) == 6
    assert not train & held_out
    assert splits[0].counts["files_of_other_kinds"] == 1
    assert splits[0].counts["rows"] == 12
    assert splits[2].counts["rows"] == 42

  @pytest.mark.parametrize("kind", rows_lib.SHAPES)
  def test_folds_hold_out_every_group_once(self, write, kind):
    path = write(*cases.many(kind), *cases.many(kind))
    held_out = []
    for fold in range(4):
      split = files.load(path, kind, folds=4, fold=fold)
      groups = {row.group for row in split.validation}
      assert len(split.train) + len(split.validation) == 40
      assert not groups & {row.group for row in split.train}
      held_out += groups
    assert sorted(held_out) == sorted(f"q{n}" for n in range(20))

  def test_validation_path_is_the_users_split(self, write):
    path = write({"prompt": "a"}, {"prompt": "b"}, name="train.jsonl")
    other = write({"prompt": "b"}, {"prompt": "c", "n": 1}, name="val.jsonl")
    split = files.load(path, "prompts", validation_path=other)
    assert [row.group for row in split.train] == ["a", "b"]
    assert [row.group for row in split.validation] == ["b", "c"]
    assert split.counts == {
      "files": 1,
      "rows": 2,
      "validation_files": 1,
      "validation_rows": 2,
      "validation_ignored_fields": 1,
      "shared_groups": 1,
    }


class TestCounts:
  def test_rows_that_teach_nothing_are_dropped_and_counted(self, write):
    path = write(
      *cases.many("preferences"),
      {"prompt": "x", "chosen": "same", "rejected": "same"},
      {"prompt": "y", "chosen": " ", "rejected": "a"},
      {"prompt": "z", "chosen": "a", "rejected": "", "score": 3},
    )
    split = files.load(path, "preferences")
    assert len(split.train) + len(split.validation) == 20
    assert split.counts == {
      "files": 1,
      "rows": 23,
      "equal_dropped": 1,
      "empty_dropped": 2,
      "ignored_fields": 1,
    }

  def test_identical_conversations_are_equal_pairs(self, write):
    messages = [cases.QUESTION, cases.assistant("Yes")]
    path = write(
      *cases.many("preferences"), {"chosen": messages, "rejected": messages}
    )
    assert files.load(path, "preferences").counts["equal_dropped"] == 1

  @pytest.mark.parametrize(
    "row",
    [
      {"prompt": "a", "response": "b", "id": 7},
      {"prompt": "a", "messages": [cases.QUESTION, cases.assistant("b")]},
      {"messages": [cases.QUESTION | {"name": "Ann"}, cases.assistant("b")]},
    ],
  )
  def test_fields_that_are_not_used_are_counted(self, write, row):
    path = write(*cases.many("demonstrations"), row)
    assert files.load(path, "demonstrations").counts["ignored_fields"] == 1
