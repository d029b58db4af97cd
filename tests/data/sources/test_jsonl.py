"""Users' own data: every shape, every error, and the split."""

import gzip
import json

import pytest

from perl_jax.data.records import Demonstration, Labelled, Preference, Prompt
from perl_jax.data.sources.jsonl import files
from perl_jax.data.sources.jsonl import rows as rows_lib

QUESTION = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


@pytest.fixture
def write(tmp_path):
  def write(*rows, name="rows.jsonl"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = tmp_path / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)

  return write


def read(path, kind):
  """All rows of a file, in order, without a split."""
  return files.load(path, kind, validation_path=path).train


def many(shape, count=20):
  """Rows of a shape, each of its own group."""
  for n in range(count):
    yield {
      "preferences": {"prompt": f"q{n}", "chosen": "a", "rejected": "b"},
      "labelled": {"prompt": f"q{n}", "response": "a", "label": n % 2},
      "demonstrations": {"prompt": f"q{n}", "response": "a"},
      "prompts": {"prompt": f"q{n}"},
    }[shape]


class TestShapes:
  @pytest.mark.parametrize(
    "row",
    [
      {"prompt": "Why?", "chosen": "Yes", "rejected": "No"},
      {
        "prompt": [QUESTION],
        "chosen": [assistant("Yes")],
        "rejected": [assistant("No")],
      },
      {
        "prompt": "Why?",
        "chosen": [QUESTION, assistant("Yes")],
        "rejected": [QUESTION, assistant("No")],
      },
      {
        "chosen": [QUESTION, assistant("Yes")],
        "rejected": [QUESTION, assistant("No")],
      },
      {"prompt": [QUESTION], "chosen": "Yes", "rejected": "No"},
    ],
    ids=["text", "last messages", "both whole", "implicit", "mixed"],
  )
  def test_preferences_in_all_forms_are_the_same_row(self, write, row):
    path = write(row)
    assert read(path, "preferences") == [
      Preference(f"{path}:1", "why", (QUESTION,), "Yes", "No")
    ]
    assert read(path, "prompts") == [
      Prompt(f"{path}:1", "why", (QUESTION,), None, row)
    ]

  def test_implicit_prompt_is_all_that_is_shared(self, write):
    shared = [SYSTEM, QUESTION, assistant("Because."), user("So?")]
    path = write(
      {
        "chosen": [*shared, assistant("Yes")],
        "rejected": [*shared, assistant("No")],
      }
    )
    (row,) = read(path, "preferences")
    assert row.prompt == tuple(shared)
    assert (row.chosen, row.rejected, row.group) == ("Yes", "No", "why")

  @pytest.mark.parametrize(
    ("label", "value"),
    [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0), (1.0, 1.0), (0.0, 0.0)],
  )
  @pytest.mark.parametrize(
    "fields",
    [
      {"prompt": "Why?", "response": "Yes"},
      {"prompt": "Why?", "completion": "Yes"},
      {"prompt": [QUESTION], "completion": [assistant("Yes")]},
      {"messages": [QUESTION, assistant("Yes")]},
    ],
  )
  def test_labelled(self, write, fields, label, value):
    path = write(fields | {"label": label})
    (row,) = read(path, "labelled")
    assert row == Labelled(f"{path}:1", "why", (QUESTION,), "Yes", value)
    assert isinstance(row.label, float)
    assert read(path, "prompts") == [
      Prompt(f"{path}:1", "why", (QUESTION,), None, fields | {"label": label})
    ]

  @pytest.mark.parametrize("name", ["response", "completion"])
  def test_demonstrations_of_prompt_and_response(self, write, name):
    # What a reward function may want to know goes with the prompt.
    fields = {"prompt": "Why?", name: "Yes", "tests": ["a", 1]}
    path = write(fields)
    assert read(path, "demonstrations") == [
      Demonstration(f"{path}:1", "why", (QUESTION,), (assistant("Yes"),))
    ]
    assert read(path, "prompts") == [
      Prompt(f"{path}:1", "why", (QUESTION,), "Yes", fields)
    ]

  def test_only_the_response_to_a_long_prompt_is_a_target(self, write):
    prompt = [QUESTION, assistant("Because."), user("So?")]
    (row,) = read(
      write({"prompt": prompt, "response": "Yes"}), "demonstrations"
    )
    assert row.prompt == tuple(prompt)
    assert row.turns == (assistant("Yes"),)

  def test_every_answer_of_a_conversation_is_a_target(self, write):
    messages = [SYSTEM, QUESTION, assistant("A"), user("So?"), assistant("B")]
    path = write({"messages": messages})
    (row,) = read(path, "demonstrations")
    assert row.prompt == (SYSTEM, QUESTION)
    assert row.turns == tuple(messages[2:])
    (row,) = read(path, "prompts")
    assert (row.prompt, row.reference) == (tuple(messages[:-1]), "B")

  def test_prompts_alone(self, write):
    path = write({"prompt": "Why?"}, {"prompt": [SYSTEM, QUESTION]})
    assert [row.prompt for row in read(path, "prompts")] == [
      (QUESTION,),
      (SYSTEM, QUESTION),
    ]

  def test_a_conversation_without_a_user_has_a_group(self, write):
    path = write(
      {"messages": [SYSTEM, assistant("A")]},
      {"messages": [{"role": "tool", "content": "?"}, assistant("!")]},
    )
    groups = [row.group for row in read(path, "demonstrations")]
    assert groups == ["be brief", f"{path}:2"]


class TestFiles:
  def test_gzip_blank_lines_bom_and_line_separators(self, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    text = '\ufeff{"prompt": "a\u2028b"}\n\n  \n{"prompt": "c"}'
    path.write_bytes(gzip.compress(text.encode()))
    rows = read(str(path), "prompts")
    assert [row.prompt[0]["content"] for row in rows] == ["a\u2028b", "c"]
    assert [row.id.rsplit(":", 1)[1] for row in rows] == ["1", "4"]

  def test_a_directory_is_read_in_the_order_of_names(self, write, tmp_path):
    write({"prompt": "2"}, name="b.jsonl")
    write({"prompt": "1"}, name="a.jsonl")
    write("not data", name="README.md")
    rows = read(str(tmp_path), "prompts")
    assert [row.prompt[0]["content"] for row in rows] == ["1", "2"]

  def test_kinds_of_one_directory_are_split_in_one_way(self, write, tmp_path):
    write(*many("preferences", 12), name="a.jsonl")
    write(*many("labelled", 30), name="b.jsonl")
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
    path = write(*many(kind), *many(kind))
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
      *many("preferences"),
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
    messages = [QUESTION, assistant("Yes")]
    path = write(
      *many("preferences"), {"chosen": messages, "rejected": messages}
    )
    assert files.load(path, "preferences").counts["equal_dropped"] == 1

  @pytest.mark.parametrize(
    "row",
    [
      {"prompt": "a", "response": "b", "id": 7},
      {"prompt": "a", "messages": [QUESTION, assistant("b")]},
      {"messages": [QUESTION | {"name": "Ann"}, assistant("b")]},
    ],
  )
  def test_fields_that_are_not_used_are_counted(self, write, row):
    path = write(*many("demonstrations"), row)
    assert files.load(path, "demonstrations").counts["ignored_fields"] == 1


GOOD = {
  "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
  "labelled": {"prompt": "a", "response": "b", "label": 1},
  "demonstrations": {"prompt": "a", "response": "b"},
  "prompts": {"prompt": "a"},
}


class TestErrors:
  """Each names the file, the line, what was found and the way out."""

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
      ('{"prompt": "b",}', "not valid JSON at column 16"),
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

  def test_no_known_field(self, write):
    path = write({"promt": "a", "respones": "b"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no field") as error:
      files.load(path, "demonstrations")
    message = str(error.value)
    assert "it has promt, respones" in message
    assert "'promt' for 'prompt' and 'respones' for 'response'" in message
    assert all(shape.fields in message for shape in rows_lib.SHAPES.values())

  @pytest.mark.parametrize(
    ("row", "field", "message"),
    [
      ({"prompt": "a", "chosen": "b"}, "rejected", "missing.*prompt, chosen"),
      ({"chosen": "b", "rejected": "c"}, "prompt", "missing.*chosen, rejected"),
      (
        {"promt": "a", "chosen": "b", "rejected": "c"},
        "prompt",
        "missing.* Is 'promt' a slip",
      ),
      ({"prompt": "a", "label": 1}, "response", "missing.*prompt, label"),
      ({"response": "a"}, "prompt", "missing"),
      ({"prompt": 3, "response": "a"}, "prompt", "text or a list.* not 3"),
      ({"prompt": " ", "response": "a"}, "prompt", "empty"),
      ({"prompt": []}, "prompt", r"list of .* but is \[\]"),
      ({"prompt": ["hi"]}, r"prompt\[0\]", 'object, not "hi"'),
      ({"prompt": [assistant("a")]}, "prompt", "ends with .* assistant"),
      ({"prompt": "a", "response": None}, "response", "not null"),
      ({"prompt": "a", "response": {"b": 1}}, "response", "not {"),
      (
        {"prompt": "a", "response": "b", "completion": "c"},
        "completion",
        "another name",
      ),
      ({"messages": "hi"}, "messages", 'list of .* but is "hi"'),
      ({"messages": [QUESTION]}, "messages", "last .* of the user.*assistant"),
      ({"messages": [assistant("a")]}, "messages", "nothing before"),
      (
        {"messages": [{"role": "bot", "content": "a"}, assistant("b")]},
        r"messages\[0\]",
        "unknown role 'bot'.*system, user, assistant, tool",
      ),
      (
        {"messages": [QUESTION, {"role": "assistant", "content": None}]},
        r"messages\[1\]",
        "'content' must be text, but is null",
      ),
      (
        {"messages": [{"from": "human", "value": "a"}, assistant("b")]},
        r"messages\[0\]",
        "'role' must be text",
      ),
      ({"prompt": "a", "response": "b", "label": 2}, "label", "0, 1.* is 2"),
      ({"prompt": "a", "response": "b", "label": "1"}, "label", 'is "1"'),
      ({"prompt": "a", "response": "b", "label": 0.5}, "label", "is 0.5"),
      ({"prompt": "a", "response": "b", "label": None}, "label", "is null"),
      (
        {"prompt": "a", "chosen": "b", "rejected": [assistant("c")]},
        "rejected",
        "both must be text or both messages",
      ),
      (
        {"prompt": "a", "chosen": [QUESTION], "rejected": [assistant("c")]},
        "chosen",
        "last message is of the user",
      ),
      (
        {
          "chosen": [user("a"), assistant("b")],
          "rejected": [user("c"), assistant("d")],
        },
        "prompt",
        "missing.* begin with the same",
      ),
      (
        {
          "chosen": [QUESTION, assistant("b")],
          "rejected": [QUESTION, assistant("c"), user("d"), assistant("e")],
        },
        "rejected",
        "has 4 messages .* not the prompt",
      ),
    ],
  )
  def test_wrong_field(self, write, row, field, message):
    shape = rows_lib.shape_of(row, "")
    path = write(GOOD[shape], row)
    pattern = rf"rows\.jsonl:2: field '{field}'.*{message}"
    with pytest.raises(ValueError, match=pattern):
      files.load(path, shape)

  def test_shape_changes_within_a_file(self, write):
    path = write(GOOD["demonstrations"], GOOD["preferences"])
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
    path = write(*many(shape))
    with pytest.raises(ValueError, match=f"No {kind} .*rows.jsonl") as error:
      files.load(path, kind)
    assert rows_lib.SHAPES[shape].fields in str(error.value)
    assert rows_lib.SHAPES[kind].fields in str(error.value)

  def test_unknown_kind(self, write):
    with pytest.raises(ValueError, match=r"no kind 'dialogs'.*demonstrations"):
      files.load(write(GOOD["prompts"]), "dialogs")

  def test_too_few_groups_names_the_file_and_validation_path(self, write):
    path = write(GOOD["prompts"], GOOD["prompts"])
    with pytest.raises(ValueError, match=r"rows.jsonl: .*`validation_path`"):
      files.load(path, "prompts")
