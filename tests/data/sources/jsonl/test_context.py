"""System messages and tools that are columns; rows that cannot be used."""

import inspect

import pytest
import transformers

from perl_jax.data.sources.jsonl import files, forms, keys
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, system, user

_TALKS = ("messages", "conversations")
FRENCH = system("Answer in French.")
SEEN = ("tools", "images", "context", "custom_system_prompt")
TOOLS = [{"type": "function", "function": {"name": "look"}}]
ROWS = {
  "preferences": {"prompt": "Hi", "chosen": "Salut", "rejected": "Hello"},
  "demonstrations": {"messages": [user("Hi"), assistant("Salut")]},
  "labelled": {"prompt": "Hi", "response": "Salut", "label": 1},
  "prompts": {"prompt": "Hi"},
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_first_message(write, kind, column):
  path = write({column: "Answer in French.", **ROWS[kind]})
  (row,) = cases.read(path, kind)
  assert row.prompt == (FRENCH, user("Hi"))
  assert row.group == "hi"


VARIABLES = {"enable_thinking": True}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("value", [
  VARIABLES, VARIABLES | {"mode": None}, '{"enable_thinking": true}',
], ids=["object", "null within", "text"])  # fmt: skip
def test_variables_of_the_template_are_on_the_first_message(write, kind, value):
  path = write(
    {"chat_template_kwargs": value, "system": "Brief.", **ROWS[kind]}
  )
  found = files.load(path, kind, validation_path=path)
  first, second = found.train[0].prompt
  assert first == system("Brief.") | {"chat_template_kwargs": VARIABLES}
  assert second == user("Hi")
  assert "ignored_fields" not in found.counts


@pytest.mark.parametrize("value", [None, {}, "", {"a": None}])
def test_no_variables_are_none(write, value):
  path = write({"chat_template_kwargs": value, **ROWS["demonstrations"]})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (user("Hi"),)


@pytest.mark.parametrize(
  ("value", "said"),
  [
    ([1], r"must be an object .*but is \[1\]"),
    ("high", 'must be an object .*but is "high"'),
    ({"tools": [], "a": 1}, "has 'tools', which is an argument"),
    ({"add_generation_prompt": True}, "has 'add_generation_prompt'"),
  ],
)
def test_variables_that_cannot_be(write, value, said):
  row = {"chat_template_kwargs": value, **ROWS["prompts"]}
  pattern = rf"rows\.jsonl:1: field 'chat_template_kwargs': {said}"
  with pytest.raises(ValueError, match=pattern):
    files.load(write(row), "prompts")


def test_arguments_of_transformers_are_no_variables():
  taken = inspect.signature(
    transformers.PreTrainedTokenizerBase.apply_chat_template
  ).parameters
  assert {*taken} - {"self", "kwargs"} <= keys.ARGUMENTS


def test_rows_with_other_variables_make_no_pair(write):
  rows = [
    {"prompt": "Hi", "response": said, "score": score,
     "chat_template_kwargs": {"enable_thinking": thinking}}
    for said, score, thinking in (
      ("a", 3, True), ("b", 1, True), ("c", 0, False))
  ]  # fmt: skip
  path = write(*rows)
  found = files.load(
    path, "preferences", validation_path=path, reading=forms.Reading(margin=1.0)
  )
  assert [(row.chosen, row.rejected) for row in found.train] == [("a", "b")]


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_system_column_is_absent(write, value):
  path = write({"system": value, **ROWS["demonstrations"]})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (user("Hi"),)


def test_a_system_column_that_the_messages_repeat(write):
  talk = [FRENCH, user("Hi"), assistant("Salut")]
  path = write({"system": FRENCH["content"], "messages": talk})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (FRENCH, user("Hi"))
  path = write({"system": "Be brief.", "messages": talk})
  with pytest.raises(ValueError, match=r":1: field 'system'.* another"):
    cases.read(path, "demonstrations")


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
  ("column", "value"),
  [
    ("tools", TOOLS),
    ("tools", '[{"type": "function", "function": {"name": "look"}}]'),
    ("functions", [{"name": "look", "description": None}]),
    ("tools", ['{"type": "function", "function": {"name": "look"}}']),
    ("functions", ['{"name": "look"}']),
  ],
)
def test_tools_are_a_key_of_the_first_message(write, kind, column, value):
  path = write({column: value, **ROWS[kind]})
  (row,) = cases.read(path, kind)
  assert row.prompt == ({**user("Hi"), "tools": TOOLS},)
  assert files.load(path, kind, validation_path=path).notes == ()


@pytest.mark.parametrize(
  ("more", "why"),
  [
    ({"images": ["a.png"]}, "field 'images': changes what the row means"),
    ({"context": "It was Bob."}, "field 'context': changes what the row means"),
    ({"custom_system_prompt": "Be brief."}, "A system message is a column"),
    ({"weight": 0.5}, "field 'weight': changes what the row means"),
    ({"tool": "x"}, "Is 'tools' meant"),
    ({"tool_calls": [1]}, "is read as a key of messages, and not here"),
    ({"train": False}, "is read as a key of messages, and not here"),
  ],
)
def test_a_column_that_would_change_the_meaning_is_refused(write, more, why):
  good = list(cases.many("demonstrations"))
  path = write(*good, {**ROWS["demonstrations"], **more})
  with pytest.raises(ValueError, match=rf"rows\.jsonl:21: .*{why}"):
    files.load(path, "demonstrations")
  # The way out that the error names.
  found = files.load(path, "demonstrations", ignore=tuple(more))
  assert found.counts["ignored_fields"] == 1
  if not {*SEEN}.isdisjoint(more):  # The model would not see them.
    with pytest.raises(ValueError, match=rf"rows\.jsonl:21: .*{why}"):
      files.load(path, "prompts")
  else:  # A reward function is given the whole row.
    assert files.load(path, "prompts").counts["rows"] == 21


@pytest.mark.parametrize("value", [None, [], "", {}])
def test_an_empty_column_means_nothing(write, value):
  path = write({**ROWS["demonstrations"], "images": value, "tools": value})
  assert len(cases.read(path, "demonstrations")) == 1


def test_columns_that_are_left_out_are_named_with_their_share(write):
  rows = list(cases.many("demonstrations"))
  path = write(*rows[:10], *({**row, "id": 7} for row in rows[10:]))
  found = files.load(path, "demonstrations")
  assert found.notes == (
    f"{path}: fields that are not read: id (50 % of rows)",
  )
  assert files.load(path, "prompts").notes == ()


@pytest.mark.parametrize(
  ("row", "names"),
  [
    ({"prompt": "To French.", "input": "Hi"}, "input (100 % of rows)"),
    ({"instruction": "Answer.", "question": "1 + 1?"}, "question (100 % of"),
    ({"messages": [user("1 + 1?"), assistant("2")], "prompt": "Sum."},
     "prompt (100 % of"),
    ({"prompt": "To French.", "passage": "Hi", "query": "Hm?"},
     "passage (100 % of rows), query (100 % of rows)"),
    ({"prompt": "To French: Hi", "input": "Hi"}, ""),
    ({"instruction": "To French:", "input": "Hi"}, ""),
    ({"prompt": "Hi", "question": "", "answer": "a", "id": "b"}, ""),
  ],
)  # fmt: skip
def test_what_rl_does_not_ask_is_in_the_log(write, row, names):
  """A model that is asked a part of a question has nothing to say of it."""
  path = write(row, row)
  notes = files.load(path, "prompts", validation_path=path).notes
  assert len(notes) == bool(names)
  assert not names or notes[0].startswith(
    f"{path}: fields that are not in the prompt, which the model does not see"
    f" and a reward function does: {names}"
  )


def test_the_sides_of_a_pair_share_a_prompt_whatever_its_ids_are(write):
  sides = {
    side: [
      user("q") | {"id": f"{side} 1"},
      assistant("a") | ({"weight": 0} if side == "chosen" else {}),
      user("r") | {"date": n},
      assistant(text),
    ]
    for n, (side, text) in enumerate({"chosen": "b", "rejected": "c"}.items())
  }
  (row,) = cases.read(write(sides), "preferences")
  assert [turn["content"] for turn in row.prompt] == ["q", "a", "r"]
  assert (row.chosen, row.rejected) == ("b", "c")


@pytest.mark.parametrize(
  ("row", "kind"),
  [
    (
      {"prompt": "q", "response": "a", "chosen": None, "rejected": None},
      "demonstrations",
    ),
    ({"prompt": "q", "response": "a", "label": None}, "prompts"),
    (
      {"prompt": "q", "chosen": "a", "rejected": "b", "messages": None},
      "preferences",
    ),
    (
      {"messages": [user("q"), assistant("a")], "prompt": None, "label": None},
      "demonstrations",
    ),
  ],
)
def test_a_null_field_is_absent(write, row, kind):
  (found,) = cases.read(write(row), kind)
  assert found.prompt == (user("q"),)


@pytest.mark.parametrize(
  "talk",
  [
    [user("q"), assistant("a"), user("thanks")],
    [user("q"), assistant(None)],
    [user(" "), assistant("a")],
    [user("q"), assistant(""), user("r"), assistant("a")],
    [user("q"), {"role": "narrator", "content": "n"}, assistant("a")],
    [user("q"), assistant("a") | {"weight": 0}],
    [assistant("a")],
    ["q", "a"],
    [],
  ],
)
def test_a_few_rows_that_cannot_be_used_are_left_out(write, talk):
  bad = {"messages": talk}
  good = [ROWS["demonstrations"]] * 4
  path = write(*good, bad, bad, bad, bad)
  found = files.load(path, "demonstrations", validation_path=path)
  assert len(found.train) == 4
  assert found.counts["unusable_dropped"] == 4
  (note,) = found.notes
  assert note.startswith("left out 4 rows, ")
  assert all(f"{path}:{n}: field" in note for n in (5, 6, 7))
  assert note.endswith("and 1 more")
  path = write(*good, *[bad] * 5)
  with pytest.raises(ValueError, match=r"5 of 9 rows of .* cannot be used"):
    files.load(path, "demonstrations")


@pytest.mark.parametrize(
  ("kind", "more"),
  [
    ("preferences", {"chosen": [assistant("Yes") | {"weight": 0}],
                     "rejected": [assistant("No")]}),
    ("labelled", {"response": [assistant("Yes") | {"weight": 0}]}),
  ],
)  # fmt: skip
def test_a_reply_of_weight_0_teaches_nothing(write, kind, more):
  path = write(*cases.many(kind), ROWS[kind] | more)
  found = files.load(path, kind)
  assert found.counts["unusable_dropped"] == 1
  assert "a reply has the weight 0" in found.notes[0]


@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
@pytest.mark.parametrize(
  "more",
  [
    {"tools": "None"},
    {"tools": ["look"]},
    {"chat_template_kwargs": "high"},
    {"messages": [user("q"), assistant("a") | {"weight": 0.5}]},
    {"messages": [user("q"), assistant(None) | {"tool_calls": "f(1)"}]},
    {"messages": [user([{"type": "image_url"}]), assistant("a")]},
    {
      "conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": "look(1)"},
      ]
    },
  ],
)
def test_a_wrong_value_leaves_one_row_out(write, kind, more):
  good = list(cases.many("demonstrations"))
  row = {} if len(more) == 1 and next(iter(more)) in _TALKS else ROWS[kind]
  path = write(*good, {**row, **more})
  found = files.load(path, kind)
  assert found.counts["unusable_dropped"] == 1
  (note,) = found.notes
  assert note.startswith("left out 1 row, by their '") and ":21: field" in note
  with pytest.raises(ValueError, match=r"1 of 1 rows of .* cannot be used"):
    files.load(write({**row, **more}), kind)


def test_a_row_that_is_trained_on_may_say_so(write):
  path = write({"train": True, **ROWS["demonstrations"]})
  found = files.load(path, "demonstrations", validation_path=path)
  assert len(found.train) == 1 and "train" in found.notes[0]


def test_names_to_ignore_as_a_command_line_gives_them(write):
  path = write({"images": ["a"], "context": "c", **ROWS["demonstrations"]})
  for given in (["[images, context]"], ["['images','context']", ""]):
    found = files.load(
      path, "demonstrations", validation_path=path, ignore=given
    )
    assert len(found.train) == 1 and "data.ignore" not in str(found.notes)
  found = files.load(
    path,
    "demonstrations",
    validation_path=path,
    ignore=["images", "context", "image"],
  )
  assert f"{path}: no row that is read has image, which" in found.notes[-1]


def test_a_system_message_of_text_parts(write):
  """As Bedrock and Anthropic have it."""
  row = {"system": [{"text": "Be "}, {"type": "text", "text": "brief."}]}
  row |= {"messages": [user("q"), assistant("a")]}
  (found,) = cases.read(write(row), "demonstrations")
  assert found.prompt[0] == {"role": "system", "content": "Be brief."}
  bad = row | {"system": [{"type": "image"}]}
  path = write(bad, bad)
  with pytest.raises(ValueError, match="field 'system': has a part"):
    cases.read(path, "demonstrations")
