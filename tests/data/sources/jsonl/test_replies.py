"""Replies with calls and thoughts, and those that end as in a template."""

import json

import pytest

from perl_jax.data.sources.jsonl import files, forms, whole
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, user

TOOLS = json.dumps([{"name": "look", "parameters": {}}])
CALLS = [{"name": "look", "arguments": {"n": 1}}]
CALL = {"type": "function", "function": CALLS[0]}


def load(path, kind, **columns):
  reading = forms.Reading(columns=columns)
  return files.load(path, kind, validation_path=path, reading=reading)


def test_a_response_that_is_calls_of_tools(write):
  """As xlam-function-calling has them."""
  row = {"query": "q", "tools": TOOLS, "answers": json.dumps(CALLS)}
  path = write(row, row)
  found = load(path, "demonstrations", query="prompt", answers="response")
  assert [turn["tool_calls"] for turn in found.train[0].turns] == [[CALL]]
  assert "2 rows have replies that are calls of `tools`" in found.notes[0]
  # A reward function is given the text.
  found = load(path, "prompts", query="prompt", answers="response")
  assert found.train[0].reference == row["answers"] and found.notes == ()


def test_a_pair_of_a_call_and_a_text(write):
  row = {"prompt": "q", "tools": TOOLS, "chosen": json.dumps(CALLS)}
  (row,) = cases.read(write(row | {"rejected": "no"}), "preferences")
  assert row.chosen["tool_calls"] == [CALL]
  assert row.rejected == "no"


@pytest.mark.parametrize(
  ("tools", "said"),
  [
    ("[]", json.dumps(CALLS)),
    (TOOLS, json.dumps([{"name": "Ann", "arguments": [], "age": 3}])),
    (TOOLS, "[]"),
    (TOOLS, "[1]"),
    (TOOLS, "[look]"),
  ],
)
def test_other_responses_beside_tools_are_text(write, tools, said):
  row = {"prompt": "q", "tools": tools, "response": said}
  (found,) = cases.read(write(row), "demonstrations")
  assert found.turns == (assistant(said),)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_thoughts_beside_a_response(write, name):
  row = {"prompt": "q", "response": "a", name: "Hm."}
  path = write(row, row | {name: " "}, row | {name: None})
  found = load(path, "demonstrations")
  first, second, third = (record.turns for record in found.train)
  assert first == (assistant("a") | {name: "Hm."},)
  assert second == third == (assistant("a"),)
  assert any("1 rows have thoughts in a column" in n for n in found.notes)
  found = load(write(row | {"label": 1}), "labelled")
  assert found.train[0].response == assistant("a") | {name: "Hm."}
  (prompt,) = cases.read(write(row), "prompts")
  assert prompt.reference == "a"
  named = {"prompt": "q", "response": "a", "cot": "Hm."}
  found = load(write(named), "demonstrations", cot=name)
  assert found.train[0].turns == first


@pytest.mark.parametrize(
  ("row", "kind"),
  [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preferences"),
    ({"messages": [user("q"), assistant("a")]}, "demonstrations"),
  ],
)
def test_thoughts_of_nobody_knows_whom_are_refused(write, row, kind):
  with pytest.raises(
    ValueError, match=r"'thinking': changes .*a key of its mes"
  ):
    cases.read(write(row | {"thinking": "Hm."}), kind)


@pytest.mark.parametrize(
  "stop",
  ["<|im_end|>", " </s>", "\n<|endoftext|>\n", "<|eot_id|>", "<end_of_turn>"],
)
def test_a_token_that_ends_a_turn_is_no_part_of_a_reply(write, stop):
  rows = {
    "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "labelled": {"prompt": "q", "response": "a", "label": 1},
    "demonstrations": {"prompt": "q", "completion": [assistant("a")]},
  }
  names = ("chosen", "rejected", "response")
  ended = {
    kind: {k: v + stop if k in names else v for k, v in row.items()}
    for kind, row in rows.items()
  }
  ended["demonstrations"]["completion"] = [assistant("a" + stop)]
  for kind, row in rows.items():
    expected = cases.read(write(row), kind)
    path = write(ended[kind])
    found = load(path, kind)
    assert found.train == expected
    (note,) = found.notes
    assert f"{path}: 1 rows have replies that end with {stop.strip()!r}" in note
    assert whole.load(path, "candidates").notes == (note,)
  talk = [user("q"), assistant("a" + stop), user("r"), assistant("b" + stop)]
  (row,) = cases.read(write({"messages": talk}), "demonstrations")
  assert [turn["content"] for turn in row.turns] == ["a", "r", "b"]


def test_such_tokens_within_a_reply_stay(write):
  for said in ("<s>old</s>", "<|im_end|> ends a turn.", "a"):
    found = load(write({"prompt": "q", "response": said}), "demonstrations")
    assert found.train[0].turns == (assistant(said),) and found.notes == ()


@pytest.mark.parametrize("kind", ["preferences", "prompts"])
@pytest.mark.parametrize("whole_prompt", [True, False])
def test_a_prompt_in_a_template_is_in_the_log(write, kind, whole_prompt):
  text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
  prompt = text if whole_prompt else [user(text)]
  path = write({"prompt": prompt, "chosen": "a", "rejected": "b"})
  found = load(path, kind)
  assert found.train[0].prompt == (user(text),)
  assert len(found.notes) == 1
  assert "1 rows have '<|im_start|>' in a prompt" in found.notes[0]
  assert load(write({"text": text}), "demonstrations").notes == ()
