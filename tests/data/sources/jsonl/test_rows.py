"""The shapes of rows, and what is wrong with one."""

import gzip

import pytest

from perl_jax.data.records import Demonstration, Labelled, Preference, Prompt
from perl_jax.data.sources.jsonl import files
from perl_jax.data.sources.jsonl import rows as rows_lib
from tests.data.sources.jsonl import cases


class TestShapes:
  @pytest.mark.parametrize(
    "row",
    [
      {"prompt": "Why?", "chosen": "Yes", "rejected": "No"},
      {
        "prompt": [cases.QUESTION],
        "chosen": [cases.assistant("Yes")],
        "rejected": [cases.assistant("No")],
      },
      {
        "prompt": "Why?",
        "chosen": [cases.QUESTION, cases.assistant("Yes")],
        "rejected": [cases.QUESTION, cases.assistant("No")],
      },
      {
        "chosen": [cases.QUESTION, cases.assistant("Yes")],
        "rejected": [cases.QUESTION, cases.assistant("No")],
      },
      {"prompt": [cases.QUESTION], "chosen": "Yes", "rejected": "No"},
    ],
    ids=["text", "last messages", "both whole", "implicit", "mixed"],
  )
  def test_preferences_in_all_forms_are_the_same_row(self, write, row):
    path = write(row)
    assert cases.read(path, "preferences") == [
      Preference(f"{path}:1", "why", (cases.QUESTION,), "Yes", "No")
    ]
    assert cases.read(path, "prompts") == [
      Prompt(f"{path}:1", "why", (cases.QUESTION,), None, row)
    ]

  def test_implicit_prompt_is_all_that_is_shared(self, write):
    shared = [
      cases.SYSTEM,
      cases.QUESTION,
      cases.assistant("Because."),
      cases.user("So?"),
    ]
    path = write(
      {
        "chosen": [*shared, cases.assistant("Yes")],
        "rejected": [*shared, cases.assistant("No")],
      }
    )
    (row,) = cases.read(path, "preferences")
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
      {"prompt": [cases.QUESTION], "completion": [cases.assistant("Yes")]},
      {"messages": [cases.QUESTION, cases.assistant("Yes")]},
    ],
  )
  def test_labelled(self, write, fields, label, value):
    path = write(fields | {"label": label})
    (row,) = cases.read(path, "labelled")
    assert row == Labelled(f"{path}:1", "why", (cases.QUESTION,), "Yes", value)
    assert isinstance(row.label, float)
    assert cases.read(path, "prompts") == [
      Prompt(
        f"{path}:1", "why", (cases.QUESTION,), None, fields | {"label": label}
      )
    ]

  @pytest.mark.parametrize("name", ["response", "completion"])
  def test_demonstrations_of_prompt_and_response(self, write, name):
    # What a reward function may want to know goes with the prompt.
    fields = {"prompt": "Why?", name: "Yes", "tests": ["a", 1]}
    path = write(fields)
    assert cases.read(path, "demonstrations") == [
      Demonstration(
        f"{path}:1", "why", (cases.QUESTION,), (cases.assistant("Yes"),)
      )
    ]
    assert cases.read(path, "prompts") == [
      Prompt(f"{path}:1", "why", (cases.QUESTION,), "Yes", fields)
    ]

  def test_only_the_response_to_a_long_prompt_is_a_target(self, write):
    prompt = [cases.QUESTION, cases.assistant("Because."), cases.user("So?")]
    (row,) = cases.read(
      write({"prompt": prompt, "response": "Yes"}), "demonstrations"
    )
    assert row.prompt == tuple(prompt)
    assert row.turns == (cases.assistant("Yes"),)

  def test_every_answer_of_a_conversation_is_a_target(self, write):
    messages = [
      cases.SYSTEM,
      cases.QUESTION,
      cases.assistant("A"),
      cases.user("So?"),
      cases.assistant("B"),
    ]
    path = write({"messages": messages})
    (row,) = cases.read(path, "demonstrations")
    assert row.prompt == (cases.SYSTEM, cases.QUESTION)
    assert row.turns == tuple(messages[2:])
    (row,) = cases.read(path, "prompts")
    assert (row.prompt, row.reference) == (tuple(messages[:-1]), "B")

  def test_prompts_alone(self, write):
    path = write({"prompt": "Why?"}, {"prompt": [cases.SYSTEM, cases.QUESTION]})
    assert [row.prompt for row in cases.read(path, "prompts")] == [
      (cases.QUESTION,),
      (cases.SYSTEM, cases.QUESTION),
    ]

  def test_a_conversation_without_a_user_has_a_group(self, write):
    path = write(
      {"messages": [cases.SYSTEM, cases.assistant("A")]},
      {"messages": [{"role": "tool", "content": "?"}, cases.assistant("!")]},
    )
    groups = [row.group for row in cases.read(path, "demonstrations")]
    assert groups == ["be brief", f"{path}:2"]


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
      ({"prompt": [cases.assistant("a")]}, "prompt", "ends with .* assistant"),
      ({"prompt": "a", "response": None}, "response", "not null"),
      ({"prompt": "a", "response": {"b": 1}}, "response", "not {"),
      (
        {"prompt": "a", "response": "b", "completion": "c"},
        "completion",
        "another name",
      ),
      ({"messages": "hi"}, "messages", 'list of .* but is "hi"'),
      (
        {"messages": [cases.QUESTION]},
        "messages",
        "last .* of the user.*assistant",
      ),
      ({"messages": [cases.assistant("a")]}, "messages", "nothing before"),
      (
        {"messages": [{"role": "bot", "content": "a"}, cases.assistant("b")]},
        r"messages\[0\]",
        "unknown role 'bot'.*system, user, assistant, tool",
      ),
      (
        {"messages": [cases.QUESTION, {"role": "assistant", "content": None}]},
        r"messages\[1\]",
        "'content' must be text, but is null",
      ),
      (
        {"messages": [{"from": "human", "value": "a"}, cases.assistant("b")]},
        r"messages\[0\]",
        "'role' must be text",
      ),
      ({"prompt": "a", "response": "b", "label": 2}, "label", "0, 1.* is 2"),
      ({"prompt": "a", "response": "b", "label": "1"}, "label", 'is "1"'),
      ({"prompt": "a", "response": "b", "label": 0.5}, "label", "is 0.5"),
      ({"prompt": "a", "response": "b", "label": None}, "label", "is null"),
      (
        {"prompt": "a", "chosen": "b", "rejected": [cases.assistant("c")]},
        "rejected",
        "both must be text or both messages",
      ),
      (
        {
          "prompt": "a",
          "chosen": [cases.QUESTION],
          "rejected": [cases.assistant("c")],
        },
        "chosen",
        "last message is of the user",
      ),
      (
        {
          "chosen": [cases.user("a"), cases.assistant("b")],
          "rejected": [cases.user("c"), cases.assistant("d")],
        },
        "prompt",
        "missing.* begin with the same",
      ),
      (
        {
          "chosen": [cases.QUESTION, cases.assistant("b")],
          "rejected": [
            cases.QUESTION,
            cases.assistant("c"),
            cases.user("d"),
            cases.assistant("e"),
          ],
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
    path = write(*cases.many(shape))
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


GOOD = {
  "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
  "labelled": {"prompt": "a", "response": "b", "label": 1},
  "demonstrations": {"prompt": "a", "response": "b"},
  "prompts": {"prompt": "a"},
}
