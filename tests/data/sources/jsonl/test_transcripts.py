"""Prompts that are transcripts, and those that may be."""

import pytest

from tests.data.sources.jsonl import cases
from tests.data.sources.jsonl.formed import one
from tests.data.text.messages import assistant, user

TALK = [user("a"), assistant("b"), user("c")]


@pytest.mark.parametrize(
  "prompt",
  [
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
    "Human: a\n\nAssistant: b\n\nHuman: c\n",
    "Human: a\nAssistant: b\nHuman: c\nAssistant:",
    " Human: a\nAssistant: b\nHuman: c\nAssistant: ",
    "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc",
    "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc\n<extra_id_1>Assistant\n",
    "<extra_id_1>User\na\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc",
  ],
)
@pytest.mark.parametrize("begin", ["", " ", "\n\nAssistant: "])
def test_turns_of_a_prompt(prompt, begin):
  row = {"prompt": prompt, "chosen": begin + "x", "rejected": begin + "y"}
  assert one(row) == {"prompt": TALK, "chosen": "x", "rejected": "y"}
  row = {"prompt": prompt, "response": begin + "x"}
  assert one(row, "demonstrations") == {"prompt": TALK, "response": "x"}
  assert one({"prompt": prompt}, "prompts") == {"prompt": TALK}


def test_one_turn_is_a_transcript_by_its_replies():
  row = {"prompt": "\n\nHuman: a", "response": "\n\nAssistant: x"}
  found = one(row, "demonstrations")
  assert found == {"prompt": [user("a")], "response": "x"}
  for row in (
    {"prompt": "Human: a", "response": "x"},
    {"prompt": "Human: a"},
    {"prompt": "a", "response": "Assistant: x"},
    {"prompt": "Human:", "response": "Assistant: x"},
  ):
    assert one(row, "demonstrations") == row


@pytest.mark.parametrize(
  "prompt",
  [
    "Human: a\nAssistant: b\nHuman: c",
    "User: a\nAssistant:",
    "a\n<extra_id_1>Assistant\nb",
  ],
)
def test_what_may_be_a_transcript_is_in_the_log(write, prompt):
  path = write({"prompt": prompt, "response": "x"})
  notes = cases.files.load(path, "demonstrations", validation_path=path).notes
  assert len(notes) == 1 and "1 rows have '" in notes[0]
  assert "Give the messages by themselves" in notes[0]
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (user(prompt),)
