"""Missing values, and texts that are lists of messages."""

import json

import pytest

from perl_jax.data.sources.jsonl import files, forms
from tests.data.sources.jsonl import cases
from tests.data.sources.jsonl.formed import one
from tests.data.text.messages import assistant, system, user

NAN = float("nan")
TALK = [user("q"), assistant("a")]


def test_nan_is_an_absent_field(write):
  row = {"prompt": "q", "response": "a", "system": NAN, "label": NAN}
  (found,) = cases.read(write(row), "demonstrations")
  assert found.prompt == (user("q"),)
  talk = [user("q") | {"name": NAN}, assistant("a") | {"weight": NAN}]
  (found,) = cases.read(write({"messages": talk}), "demonstrations")
  assert found.prompt + found.turns == tuple(TALK)
  (found,) = cases.read(write({"prompt": "q", "answer": NAN}), "prompts")
  assert found.reference is None


@pytest.mark.parametrize("score", [NAN, "nan", "N/A", "4/5", True])
@pytest.mark.parametrize("kind", ["labelled", "preferences"])
def test_a_score_that_is_no_number_makes_no_label(write, kind, score):
  rows = [{"prompt": "q", "response": str(n), "score": n} for n in range(4)]
  path = write(*rows, rows[0] | {"score": score, "response": "no"})
  reading = forms.Reading(margin=1.0, threshold=2.0)
  found = files.load(path, kind, validation_path=path, reading=reading)
  replies = [
    getattr(row, name, "")
    for row in found.train
    for name in ("response", "chosen", "rejected")
  ]
  assert "no" not in replies and "3" in replies
  if isinstance(score, str):
    assert "score is no number: " in found.notes[0]
    assert f"is {json.dumps(score)}" in found.notes[0]


def test_a_label_beside_a_score_needs_a_choice(write):
  row = {"prompt": "q", "response": "a", "label": 1, "score": 2.5}
  path = write(row)
  reading = forms.Reading(threshold=3.0)
  with pytest.raises(ValueError, match="'label': is beside a score") as error:
    files.load(path, "labelled", validation_path=path, reading=reading)
  assert "--config.data.ignore=\"('label',)\"" in str(error.value)
  for ignored, label in (("label", 0.0), ("score", 0.0)):
    (found,) = files.load(
      path, "labelled", validation_path=path, reading=reading, ignore=[ignored]
    ).train
    assert found.label == label


def test_a_field_that_is_ignored_has_no_part_in_the_shape(write):
  row = {"messages": TALK, "chosen": "a", "rejected": "b", "prompt": "q"}
  path = write(row)
  with pytest.raises(ValueError, match="leave the pair out") as error:
    cases.read(path, "demonstrations")
  assert "data.ignore=\"('chosen', 'rejected')\"" in str(error.value)
  found = files.load(
    path,
    "demonstrations",
    validation_path=path,
    ignore=("chosen", "rejected"),
  )
  assert found.train[0].turns == (assistant("a"),)
  assert found.counts["ignored_fields"] == 1
  assert "chosen (100 %" in found.notes[0]


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_conversation_as_json_text(name):
  text = json.dumps([{"from": "human", "value": "q"}, assistant("a")])
  assert one({name: text}, "demonstrations") == {"messages": TALK}
  pair = {
    "prompt": [user("q")],
    "chosen": TALK,
    "rejected": [user("q"), assistant("b")],
  }
  texts = {key: json.dumps(value) for key, value in pair.items()}
  assert one(texts) == one(pair)
  spaced = {key: f"\n {text}\n" for key, text in texts.items()}
  assert one(spaced) == one(pair)
  for text in ("[1, 2]", "[INST] q", '[{"a": 1}]', "[]", '{"role": "a judge"}'):
    assert one({"prompt": text}, "prompts") == {"prompt": text}


@pytest.mark.parametrize(
  ("turn", "message"),
  [
    ({"role": "User", "content": "q"}, user("q")),
    ({"role": "human", "value": "q"}, user("q")),
    ({"from": "prompter", "text": "q"}, user("q")),
    ({"speaker": "user", "text": "q"}, user("q")),
    ({"role": "model", "content": "q"}, assistant("q")),
    ({"role": "developer", "content": "q"}, system("q")),
    ({"role": "environment", "content": "q"}, {"role": "tool", "content": "q"}),
    ({"role": None, "content": None, "from": "gpt", "value": "q"},
     assistant("q")),
    ({"role": "host", "content": "q"}, {"role": "host", "content": "q"}),
  ],
)  # fmt: skip
def test_messages_under_other_names(turn, message):
  (found,) = one({"prompt": [turn]}, "prompts")["prompt"]
  assert {k: v for k, v in found.items() if v is not None} == message


@pytest.mark.parametrize("name", ["prompt", "response"])
def test_a_conversation_as_text_with_a_key_twice_is_not_used(write, name):
  row = {"prompt": "q", "response": "a"}
  text = '[{"role": "user", "role": "assistant", "content": "q"}]'
  path = write(row, row, row | {name: text})
  found = files.load(path, "demonstrations", validation_path=path)
  assert len(found.train) == 2
  assert f"'{name}[0]'" in found.notes[0]


@pytest.mark.parametrize("name", ["prompt", "response"])
@pytest.mark.parametrize(
  "value", [str([user("q")]), f"\n {[user('q')]}", str(assistant("a")),
            str({"from": "gpt", "value": "a"})])  # fmt: skip
def test_a_list_that_python_printed_is_no_text(write, name, value):
  row = {"prompt": "q", "response": "a"}
  other = row | {"response": "{'from': 'a', 'to': 'b'}"}
  path = write(row, other, row | {name: value})
  found = files.load(path, "demonstrations", validation_path=path)
  assert len(found.train) == 2
  assert "Python has printed" in found.notes[0]
  assert f"'{name}'" in found.notes[0]


@pytest.mark.parametrize("speaker", ["assistant", "GPT"])
def test_one_message_as_json_text(speaker):
  turn = json.dumps({"role": speaker, "content": "a"})
  found = one({"prompt": "q", "response": turn}, "demonstrations")
  assert found["response"] == [assistant("a")]
  for answer in ('{"role": "chef", "text": "a"}', '{"a": 1, "a": 2}', "{}"):
    row = {"prompt": "q", "response": answer}
    assert one(row, "demonstrations") == row


@pytest.mark.parametrize("printed", [json.dumps, str])
def test_a_prompt_that_is_a_list_of_texts(write, printed):
  """As lmsys-arena has it, and a table that pandas wrote as CSV."""
  row = {"prompt": ["q?"], "chosen": ["yes"], "rejected": ["no"]}
  path = write({name: printed(value) for name, value in row.items()})
  (found,) = cases.read(path, "preferences")
  assert found.prompt == (user("q?"),)
  assert (found.chosen, found.rejected) == ("yes", "no")
  row = {"prompt": printed(["q?", "r?"]), "response": "a"}
  with pytest.raises(ValueError, match=r"'prompt': is a list of texts.*turns"):
    cases.read(write(row), "demonstrations")
  del row["response"]
  assert one(row, "prompts", columns={"prompt": "turns"})["prompt"] == "q?"
  row = {"prompt": printed(["q?"]), "response": printed(["a", "b"])}
  with pytest.raises(ValueError, match="'response': is a list of 2 texts"):
    cases.read(write(row), "demonstrations")
  # An answer may be a list.
  row = {"prompt": "As a list, please.", "response": printed(["a"])}
  assert one(row, "demonstrations") == row
  assert one({"prompt": ["q?"]}, "prompts") == {"prompt": "q?"}


def test_a_column_is_ignored_under_its_name_in_the_file(write):
  path = write({"q": "q", "prompt": "long", "response": "a"})
  reading = forms.Reading({"q": "prompt"})
  with pytest.raises(ValueError, match=r"data\.ignore=\"\('prompt',\)\""):
    files.load(path, "demonstrations", validation_path=path, reading=reading)
  (found,) = files.load(
    path,
    "demonstrations",
    validation_path=path,
    reading=reading,
    ignore=("prompt",),
  ).train
  assert found.prompt == (user("q"),)


def test_empty_tools_are_no_tools(write):
  for empty in ("[]", [], "", None, "null"):
    talk = [user("q"), assistant("a") | {"tool_calls": empty}]
    (row,) = cases.read(
      write({"messages": talk, "tools": empty}), "demonstrations"
    )
    assert row.prompt + row.turns == tuple(TALK)


def test_the_context_of_an_instruction_is_read(write):
  """As in Dolly; beside a prompt, it is refused rather than left out."""
  row = {"instruction": "q", "context": "of this", "response": "a"}
  (found,) = cases.read(write(row), "demonstrations")
  assert found.prompt == (user("q\n\nof this"),)
  row = {"prompt": "q", "context": "of this", "response": "a"}
  with pytest.raises(ValueError, match="'context': changes what"):
    cases.read(write(row), "demonstrations")
  cases.read(write(row | {"context": ""}), "demonstrations")
  cases.read(write(row | {"content": "x"} | {"context": ""}), "demonstrations")


def test_the_answer_of_a_rule_is_the_reference(write):
  row = {"prompt": [user("q")], "reward_model": {"ground_truth": "4"}}
  (found,) = cases.read(write(row), "prompts")
  assert found.reference == "4"


NULLS = {"bytes": None, "path": None}


@pytest.mark.parametrize(
  "beside",
  [
    {"image": NULLS},
    {"images": [NULLS, None]},
    {"context": {"docs": [{"title": None}]}},
    {"tools": [{"type": None, "function": {"name": None}}]},
  ],
)
def test_an_object_of_nulls_is_absent(write, beside):
  """As a table has it where only other rows have an image."""
  path = write({"prompt": "q", "response": "a", **beside})
  assert cases.read(path, "demonstrations")[0].prompt == (user("q"),)
  asked = user("q") | beside | {"tool_calls": [{"function": {"name": None}}]}
  path = write({"messages": [asked, assistant("a")]})
  assert cases.read(path, "demonstrations")[0].prompt == (user("q"),)


@pytest.mark.parametrize(
  "beside",
  [
    {"image": {"bytes": None, "path": "a.png"}},
    {"images": [NULLS, {"bytes": "x", "path": None}]},
    {"context": {"page": 0}},
  ],
)
def test_an_object_that_is_not_of_nulls_is_refused(write, beside):
  path = write({"prompt": "q", "response": "a", **beside})
  with pytest.raises(ValueError, match=r"rows\.jsonl:1.*cannot be honoured"):
    cases.read(path, "demonstrations")
