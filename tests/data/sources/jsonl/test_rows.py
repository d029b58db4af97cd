"""Rows of users' own data: every shape, and every error in a row."""

import pytest

from perl_jax.data.records import Demonstration, Labelled, Preference, Prompt
from perl_jax.data.sources.jsonl import files
from perl_jax.data.sources.jsonl import rows as rows_lib
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, user


class TestShapes:
  @pytest.mark.parametrize(
    "row",
    [
      {"prompt": "Why?", "chosen": "Yes", "rejected": "No"},
      {
        "prompt": [cases.QUESTION],
        "chosen": [assistant("Yes")],
        "rejected": [assistant("No")],
      },
      {
        "prompt": "Why?",
        "chosen": [cases.QUESTION, assistant("Yes")],
        "rejected": [cases.QUESTION, assistant("No")],
      },
      {
        "chosen": [cases.QUESTION, assistant("Yes")],
        "rejected": [cases.QUESTION, assistant("No")],
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
      assistant("Because."),
      user("So?"),
    ]
    path = write(
      {
        "chosen": [*shared, assistant("Yes")],
        "rejected": [*shared, assistant("No")],
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
      {"prompt": [cases.QUESTION], "completion": [assistant("Yes")]},
      {"messages": [cases.QUESTION, assistant("Yes")]},
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
      Demonstration(f"{path}:1", "why", (cases.QUESTION,), (assistant("Yes"),))
    ]
    assert cases.read(path, "prompts") == [
      Prompt(f"{path}:1", "why", (cases.QUESTION,), "Yes", fields)
    ]

  def test_only_the_response_to_a_long_prompt_is_a_target(self, write):
    prompt = [cases.QUESTION, assistant("Because."), user("So?")]
    (row,) = cases.read(
      write({"prompt": prompt, "response": "Yes"}), "demonstrations"
    )
    assert row.prompt == tuple(prompt)
    assert row.turns == (assistant("Yes"),)

  def test_every_answer_of_a_conversation_is_a_target(self, write):
    messages = [
      cases.SYSTEM,
      cases.QUESTION,
      assistant("A"),
      user("So?"),
      assistant("B"),
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
      {"messages": [cases.SYSTEM, assistant("A")]},
      {"messages": [{"role": "tool", "content": "?"}, assistant("!")]},
    )
    groups = [row.group for row in cases.read(path, "demonstrations")]
    assert groups == ["be brief", f"{path}:2"]


class TestErrors:
  """Each error names the file, the line, the field, and what was found."""

  def test_no_known_field(self, write):
    path = write({"promt": "a", "respones": "b"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no field") as error:
      files.load(path, "demonstrations")
    message = str(error.value)
    assert "it has promt, respones" in message
    assert """--config.data.columns='{"question": "prompt"}'""" in message
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
      ({"prompt": [3]}, r"prompt\[0\]", "object, not 3"),
      ({"prompt": ["hi", "oh"]}, "prompt", r"list of texts.*\"turns\""),
      ({"prompt": [assistant("a")]}, "prompt", "ends with .* assistant"),
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
      ({"messages": [assistant("a")]}, "messages", "nothing before"),
      (
        {"messages": [{"role": "host", "content": "a"}, assistant("b")]},
        r"messages\[0\]",
        "unknown role 'host'.*system, user, assistant, tool",
      ),
      (
        {"messages": [cases.QUESTION, {"role": "assistant", "content": None}]},
        r"messages\[1\]",
        "'content' must be text, but is null",
      ),
      (
        {"messages": [{"who": "human", "value": "a"}, assistant("b")]},
        r"messages\[0\]",
        "'role' must be text",
      ),
      ({"prompt": "a", "response": "b", "label": 2}, "label", "0, 1.* is 2"),
      ({"prompt": "a", "response": "b", "label": "+"}, "label", r'is "\+"'),
      ({"prompt": "a", "response": "b", "label": 0.5}, "label", "is 0.5"),
      (
        {"prompt": "a", "chosen": "b", "rejected": [assistant("c")]},
        "rejected",
        "both must be text or both messages",
      ),
      (
        {
          "prompt": "a",
          "chosen": [cases.QUESTION],
          "rejected": [assistant("c")],
        },
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
          "chosen": [cases.QUESTION, assistant("b")],
          "rejected": [
            cases.QUESTION,
            assistant("c"),
            user("d"),
            assistant("e"),
          ],
        },
        "rejected",
        "has 4 messages .* not the prompt",
      ),
    ],
  )
  def test_wrong_field(self, write, row, field, message):
    shape = rows_lib.shape_of(row, "")
    path = write(cases.GOOD[shape], row, row)
    pattern = rf"rows\.jsonl:2: field '{field}'.*{message}"
    with pytest.raises(ValueError, match=pattern):
      files.load(path, shape)
