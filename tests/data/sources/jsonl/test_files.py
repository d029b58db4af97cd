"""Files of users' own data: reading, splits, counts and errors."""

import gzip

import pytest

from perl_jax.data.sources.jsonl import files
from perl_jax.data.sources.jsonl import rows as rows_lib
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant
from tests.test_json_text import AFTER_COMMA


class TestFiles:
  def test_gzip_blank_lines_bom_and_line_separators(self, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    text = '\ufeff{"prompt": "a\u2028b"}\n\n  \n{"prompt": "c"}'
    path.write_bytes(gzip.compress(text.encode()))
    rows = cases.read(str(path), "prompts")
    assert [row.prompt[0]["content"] for row in rows] == ["a\u2028b", "c"]
    assert [row.id.rsplit(":", 1)[1] for row in rows] == ["1", "4"]

  def test_files_with_a_byte_order_mark_that_were_joined(self, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"prompt": "a"}\n\ufeff{"prompt": "b"}\n')
    rows = cases.read(str(path), "prompts")
    assert [row.prompt[0]["content"] for row in rows] == ["a", "b"]

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

  @pytest.mark.parametrize("kind", rows_lib.KINDS)
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
    messages = [cases.QUESTION, assistant("Yes")]
    path = write(
      *cases.many("preferences"), {"chosen": messages, "rejected": messages}
    )
    assert files.load(path, "preferences").counts["equal_dropped"] == 1

  @pytest.mark.parametrize(
    "row",
    [
      {"prompt": "a", "response": "b", "id": 7},
      {"prompt": "a", "messages": [cases.QUESTION, assistant("b")]},
      {"messages": [cases.QUESTION | {"date": "1 May"}, assistant("b")]},
    ],
  )
  def test_fields_that_are_not_used_are_counted(self, write, row):
    path = write(*cases.many("demonstrations"), row)
    assert files.load(path, "demonstrations").counts["ignored_fields"] == 1


class TestErrors:
  """Each error names the file, the line, what was found, and what to do."""

  def test_missing_file_names_the_nearest(self, write, tmp_path):
    write({"prompt": "a"}, name="train.jsonl")
    path = str(tmp_path / "trian.jsonl")
    with pytest.raises(FileNotFoundError, match=r"trian.* not exist") as error:
      files.load(path, "prompts")
    assert f"Did you mean {tmp_path / 'train.jsonl'}?" in str(error.value)

  def test_directory_without_such_files(self, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.jsonl or \.jsonl\.gz"):
      files.load(str(tmp_path), "prompts")

  @pytest.mark.parametrize("text", ["", "\n \n"])
  def test_empty_file(self, write, text):
    path = write(text)
    with pytest.raises(ValueError, match=r"rows\.jsonl is empty: .* no row"):
      files.load(path, "prompts")

  def test_nothing_left(self, write):
    path = write({"prompt": "x", "chosen": "a", "rejected": "a"})
    with pytest.raises(ValueError, match=r"none of the 1 rows .* 1 have equal"):
      files.load(path, "preferences")

  @pytest.mark.parametrize(
    ("line", "message"),
    [
      ('{"prompt": "b",}', f"not valid JSON at column {AFTER_COMMA + 15}"),
      ('{"prompt": "b"', "not valid JSON at column 15"),
      ('{"prompt": "b"} {}', "not valid JSON at column 17: Extra data"),
      ("[" * 100_000, "not usable JSON"),
      ("9" * 10_000, "not usable JSON"),
      ('["prompt"]', r'must hold a JSON object, but this is \["prompt"\]'),
    ],
  )
  def test_malformed_line(self, write, line, message):
    path = write({"prompt": "a"}, line)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*{message}"):
      files.load(path, "prompts")

  def test_not_utf8_and_broken_gzip(self, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not UTF-8"):
      files.load(str(path), "prompts")
    whole = gzip.compress(b'{"prompt": "a"}\n' * 1000)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"rows\.jsonl: broken gzip"):
      files.load(str(path), "prompts")

  def test_shape_changes_within_a_file(self, write):
    others = [cases.GOOD[n] for n in ("preferences", "labelled", "prompts")]
    path = write(cases.GOOD["demonstrations"], *others)
    with pytest.raises(ValueError, match=r":2: .*preferences.* demonstrations"):
      files.load(path, "demonstrations")

  @pytest.mark.parametrize(
    ("shape", "kind"),
    [
      ("preferences", "labelled"),
      ("preferences", "demonstrations"),
      ("labelled", "preferences"),
      ("demonstrations", "labelled"),
      ("prompts", "demonstrations"),
    ],
  )
  def test_kind_that_the_file_does_not_have(self, write, shape, kind):
    path = write(*cases.many(shape))
    with pytest.raises(ValueError, match=f"No {kind} .*rows.jsonl") as error:
      files.load(path, kind)
    assert rows_lib.SHAPES[shape].fields in str(error.value)
    assert rows_lib.SHAPES[kind].fields in str(error.value)

  def test_unknown_kind(self, write):
    with pytest.raises(ValueError, match=r"no kind 'dialogs'.*demonstrations"):
      files.load(write(cases.GOOD["prompts"]), "dialogs")

  def test_too_few_groups_names_the_file_and_validation_path(self, write):
    path = write(cases.GOOD["prompts"], cases.GOOD["prompts"])
    with pytest.raises(ValueError, match=r"rows.jsonl: .*`validation_path`"):
      files.load(path, "prompts")

  def test_a_first_row_of_another_shape_is_left_out(self, write):
    path = write({"prompt": "a"}, {"b": 1}, *cases.many("demonstrations"))
    found = files.load(path, "demonstrations")
    assert found.counts["unusable_dropped"] == 2
    assert len(found.train) + len(found.validation) == 20

  def test_replies_that_teach_nothing_are_most_of_the_rows(self, write):
    same = [{"prompt": "x", "chosen": "a", "rejected": "a "}] * 21
    path = write(*cases.many("preferences"), *same)
    with pytest.raises(ValueError, match=r"(?s)21 of 41.*equal: .*jsonl:21 |"):
      files.load(path, "preferences")


def test_replies_that_differ_in_their_reasoning(write):
  """They are no equal pair: a template may render the reasoning."""
  sides = [
    [{**assistant("x"), "reasoning_content": text}] for text in ("good", "bad")
  ]
  row = {"prompt": "q", "chosen": sides[0], "rejected": sides[1]}
  (pair,) = cases.read(write(row), "preferences")
  assert pair.chosen["reasoning_content"] == "good"
  path = write(row | {"rejected": sides[0]}, row)
  found = files.load(path, "preferences", validation_path=path)
  assert found.counts["equal_dropped"] == 1 and len(found.train) == 1
