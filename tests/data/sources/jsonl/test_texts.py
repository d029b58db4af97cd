"""Rows of one text, which is learned as it is."""

import ast
import re

import pytest

from perl_jax.data.records import Text
from perl_jax.data.sources.jsonl import files, forms, whole
from tests.data.sources.jsonl import cases, writing


@pytest.mark.parametrize("form", writing.FORMATS)
def test_a_text_is_a_demonstration_without_a_prompt(tmp_path, form):
  rows = [{"text": "The sky.\n"}, {"text": "<|im_start|>user\nHi"}]
  path = writing.write(rows, tmp_path, form)
  found = files.load(path, "demonstrations", validation_path=path)
  assert [row.text for row in found.train] == [row["text"] for row in rows]
  assert [row.group for row in found.train] == ["the sky", "imstartuser hi"]
  assert all(isinstance(row, Text) for row in found.train)
  assert found.shapes[0].endswith(": texts, read as demonstrations")


def test_a_label_beside_it_is_not_learned(write):
  path = write({"text": "a film", "label": 1}, {"text": "a play", "label": 0})
  assert [row.text for row in cases.read(path, "demonstrations")] == [
    "a film",
    "a play",
  ]


def test_another_column_is_the_text_by_its_name(write):
  path = write({"content": "a film"})
  with pytest.raises(ValueError, match=r"no field to learn from.*; text"):
    files.load(path, "demonstrations")
  reading = forms.Reading(columns={"content": "text"})
  found = files.load(
    path, "demonstrations", validation_path=path, reading=reading
  )
  assert found.train[0].text == "a film"


@pytest.mark.parametrize(
  "more",
  [
    {"prompt": "a", "response": "b"},
    {"instruction": "a", "output": "b"},
    {"messages": [cases.QUESTION, {"role": "assistant", "content": "b"}]},
  ],
)
def test_other_shapes_come_first(write, more):
  (row,) = cases.read(write(more | {"text": "a b"}), "demonstrations")
  assert not isinstance(row, Text)
  assert row.turns[-1]["content"] == "b"


def test_a_prompt_beside_it_is_a_prompt(write):
  (row,) = cases.read(write({"prompt": "a", "text": "b"}), "prompts")
  assert row.prompt[0]["content"] == "a"


@pytest.mark.parametrize("kind", ["prompts", "preferences", "labelled"])
def test_a_text_is_nothing_else(write, kind):
  path = write(*cases.many("texts"))
  with pytest.raises(ValueError, match=rf"No {kind} .*texts \(text\)") as error:
    files.load(path, kind)
  option = """--config.data.columns='{"text": "prompt"}'"""
  assert (option in str(error.value)) == (kind == "prompts")


def test_a_text_has_nothing_to_score(write):
  with pytest.raises(ValueError, match="'text': is a whole text, and a score"):
    whole.load(write({"text": "a"}), "candidates")


def test_texts_among_prompts_are_left_out_and_the_other_way_round(write):
  path = write(*cases.many("prompts"), {"text": "a"})
  found = files.load(path, "prompts", validation_path=path)
  assert len(found.train) == 20
  assert found.counts["unusable_dropped"] == 1
  assert "which are not prompts as the rows before them" in found.notes[0]
  path = write(*cases.many("texts"), {"prompt": "a"}, name="texts.jsonl")
  found = files.load(path, "demonstrations", validation_path=path)
  assert len(found.train) == 20
  assert found.counts["unusable_dropped"] == 1


def test_a_directory_of_texts_and_prompts_has_both(write, tmp_path):
  write(*cases.many("texts"), name="texts.jsonl")
  write(*cases.many("prompts"), name="prompts.jsonl")
  texts = files.load(str(tmp_path), "demonstrations")
  prompts = files.load(str(tmp_path), "prompts")
  assert len(texts.train) + len(texts.validation) == 20
  assert len(prompts.train) + len(prompts.validation) == 20
  # One division for both: what one holds out, the other does.
  assert {row.group for row in texts.validation} == {
    row.group for row in prompts.validation
  }


@pytest.mark.parametrize(
  "more",
  [
    {"role": "prompter", "parent_id": None},
    {"parent_id": "1"},
    {"from": "human"},
    {"speaker": "User"},
  ],
)
def test_one_message_of_a_conversation_is_no_text(write, more):
  """As OpenAssistant has them: what a user says should not be learned."""
  said = {"text": "How?", "lang": "en"}
  path = write(said | more, said | more)
  with pytest.raises(ValueError, match="'text': is one message of a conv") as e:
    cases.read(path, "demonstrations")
  # The way out that the error names.
  ignore, *_ = re.findall(r'data\.ignore="(\(.*?\))"', str(e.value))
  found = files.load(
    path,
    "demonstrations",
    validation_path=path,
    ignore=ast.literal_eval(ignore),
  )
  assert [row.text for row in found.train] == ["How?"] * 2


def test_a_text_beside_another_name_is_learned(write):
  rows = [{"text": "How?", "from": "a@b.c"}, {"text": "So.", "role": "chef"}]
  assert len(cases.read(write(*rows), "demonstrations")) == 2


def test_empty_texts_and_other_values_are_left_out(write):
  bad = [{"text": " "}, {"text": ["a"]}, {"text": "[{'role': 'user'}]"}]
  path = write(*cases.many("texts"), *bad)
  found = files.load(path, "demonstrations", validation_path=path)
  assert len(found.train) == 20
  assert found.counts["empty_dropped"] == 1
  assert found.counts["unusable_dropped"] == 2
  notes = " ".join(found.notes)
  assert f"{path}:22: field 'text': must be text, but is [\"a\"]" in notes
  assert f"{path}:23: field 'text': is a list of messages as Python" in notes
