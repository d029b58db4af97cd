"""Rows as TRL's trainers take them are read under TRL's names of columns.

The kinds of data sets are those of TRL's documentation, each as text and as
messages; docs/from-trl.md says for which stages they are read.
"""

import json
import sys
import types

import pytest

from perl_jax.data.sources.jsonl import files
from tests import documents
from tests.data.sources.jsonl import writing
from tests.data.text.messages import assistant, system, user

PAGE = documents.DOCS / "from-trl.md"
ASKED = [user("What color is the sky?")]
BRIEF = [system("Be brief."), *ASKED]
BLUE, GREEN = [assistant("It is blue.")], [assistant("It is green.")]
CALL = {
  "type": "function",
  "function": {"name": "look_up", "arguments": {"where": "sky"}},
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}


# Each with the kinds of records that it is read for, its prompt and replies.
PAIRED, BLUE_ONE = ("It is blue.", "It is green."), ("It is blue.",)
ROWS = {
  "prompt-completion, text": (
    {"prompt": "What color is the sky?", "completion": "It is blue."},
    ("demonstrations", "prompts"), ASKED, BLUE_ONE),
  "prompt-completion": (
    {"prompt": BRIEF, "completion": BLUE},
    ("demonstrations", "prompts"), BRIEF, BLUE_ONE),
  "prompt-completion, several messages": (
    {"prompt": BRIEF, "completion": [assistant("Wait."), user("Well?"), *BLUE]},
    ("demonstrations",), BRIEF, ("Wait.", "Well?", "It is blue.")),
  "language modeling": (
    {"messages": BRIEF + BLUE},
    ("demonstrations", "prompts"), BRIEF, BLUE_ONE),
  "preference, text": (
    {"prompt": "What color is the sky?", "chosen": "It is blue.",
     "rejected": "It is green."},
    ("preferences", "prompts"), ASKED, PAIRED),
  "preference": (
    {"prompt": BRIEF, "chosen": BLUE, "rejected": GREEN},
    ("preferences", "prompts"), BRIEF, PAIRED),
  "preference, implicit, text": (
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    ("preferences", "prompts"), [user("The sky is")], ("blue.", "green.")),
  "preference, implicit": (
    {"chosen": BRIEF + BLUE, "rejected": BRIEF + GREEN},
    ("preferences", "prompts"), BRIEF, PAIRED),
  "unpaired, text": (
    {"prompt": "What color is the sky?", "completion": "It is blue.",
     "label": True},
    ("labelled", "prompts"), ASKED, BLUE_ONE),
  "unpaired": (
    {"prompt": BRIEF, "completion": BLUE, "label": True},
    ("labelled", "prompts"), BRIEF, BLUE_ONE),
  "prompt-only, text": (
    {"prompt": "What color is the sky?", "answer": "blue"},
    ("prompts",), ASKED, ()),
  "prompt-only": ({"prompt": BRIEF, "answer": "blue"},
    ("prompts",), BRIEF, ()),
}  # fmt: skip


def replies(kind, record):
  if kind == "demonstrations":
    return tuple(turn["content"] for turn in record.turns)
  if kind == "preferences":
    return record.chosen, record.rejected
  return (record.response,) if kind == "labelled" else ()


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_trl(tmp_path, name, form):
  row, kinds, prompt, said = ROWS[name]
  path = writing.write([row, row], tmp_path, form)
  for kind in kinds:
    read = files.load(path, kind, validation_path=path).train
    assert [list(record.prompt) for record in read] == [prompt, prompt]
    if kind != "prompts":
      assert [replies(kind, record) for record in read] == [said, said]
    if kind == "labelled":
      assert [record.label for record in read] == [1.0, 1.0]


def test_tools_may_be_json_text(tmp_path):
  talk = [
    *ASKED,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "look_up", "content": "blue"},
    *BLUE,
  ]
  row = {"messages": talk, "tools": json.dumps([TOOL])}
  path = writing.write([row], tmp_path, "rows.jsonl")
  (read,) = files.load(path, "demonstrations", validation_path=path).train
  assert [m["role"] for m in read.turns] == ["assistant", "tool", "assistant"]
  assert read.turns[0]["tool_calls"] == [CALL]
  assert read.prompt[0]["tools"] == [TOOL]


@pytest.mark.parametrize(
  "row, said",
  [
    ({"messages": ASKED + BLUE, "images": ["a.png"]}, "images"),
    ({"prompt": ASKED, "completions": ["It is", " blue."],
      "labels": [True, True]}, "No demonstrations"),
  ],
)  # fmt: skip
def test_rows_that_the_page_says_are_not_read(tmp_path, row, said):
  path = writing.write([row], tmp_path, "rows.jsonl")
  with pytest.raises(ValueError, match=said):
    files.load(path, "demonstrations", validation_path=path)


def test_a_reward_function_of_trl_with_the_lines_of_the_page(monkeypatch):
  """As TRL calls it: completions are messages, columns come by their names."""

  def exact(prompts, completions, answer, **others):
    assert prompts == [BRIEF, ASKED]
    assert others == {"level": [3, None]}
    texts = [completion[0]["content"] for completion in completions]
    return [float(t == a) for t, a in zip(texts, answer, strict=True)]

  mine = types.ModuleType("my_rewards")
  mine.exact = exact
  monkeypatch.setitem(sys.modules, "my_rewards", mine)
  page = documents.text(PAGE)
  (block,) = documents.python_blocks(page)
  found = {}
  exec(block, found)
  rows = [
    {"fields": {"prompt": BRIEF, "answer": "blue", "level": 3}},
    {"fields": {"prompt": ASKED, "answer": "red"}},
  ]
  assert found["exact"]([BRIEF, ASKED], ["blue", "blue"], rows) == [1.0, 0.0]
