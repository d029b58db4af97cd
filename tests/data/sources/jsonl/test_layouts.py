"""Layouts of published data sets that are read, and what is made of them."""

import pytest

from perl_jax.data.sources.jsonl import files
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, system, user

EXCHANGES = [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}]
TALK = (user("q"), assistant("a"), user("r"), assistant("b"))


def test_exchanges_are_a_conversation(write):
  """LDJnr/Capybara."""
  (row,) = cases.read(write({"conversation": EXCHANGES}), "demonstrations")
  assert (*row.prompt, *row.turns) == TALK


@pytest.mark.parametrize("more", [{}, {"prompt": [user("q"), *TALK[1:3]]}])
def test_a_conversation_beside_whole_replies_is_not_the_prompt(write, more):
  """argilla/distilabel-capybara-dpo-7k-binarized."""
  replies = {"chosen": [*TALK[:3], assistant("c")], "rejected": list(TALK)}
  path = write({"conversation": EXCHANGES, **more, **replies})
  found = files.load(path, "preferences", validation_path=path)
  assert [row.prompt for row in found.train] == [TALK[:3]]
  assert "conversation (100 % of rows)" in found.notes[0]


def test_a_conversation_beside_replies_is_the_prompt(write):
  talk = [{"from": "human", "value": "q"}]
  chosen, rejected = assistant("a"), assistant("b")
  row = {"conversations": talk, "chosen": chosen, "rejected": rejected}
  (made,) = cases.read(write(row), "preferences")
  assert made.prompt == (user("q"),)
  # And is not where there is one.
  texts = {"prompt": "p", "chosen": "a", "rejected": "b"}
  (made,) = cases.read(write({"conversations": talk, **texts}), "preferences")
  assert made.prompt == (user("p"),)


def test_an_answer_to_nothing_is_not_learned(write):
  """ShareGPT has conversations that begin with the model."""
  talk = [assistant("hi"), assistant("you?"), user("q"), assistant("a")]
  (row,) = cases.read(write({"messages": talk}), "demonstrations")
  assert (row.prompt, row.turns) == (tuple(talk[:3]), (talk[3],))
  (row,) = cases.read(
    write({"messages": [system("s"), *TALK]}), "demonstrations"
  )
  assert row.turns == TALK[1:]
  with pytest.raises(ValueError, match="has answers, but nothing before them"):
    cases.read(write({"messages": talk[:2]}), "demonstrations")


@pytest.mark.parametrize(
  ("value", "answer"), [(2, "2"), ("2", "2"), (2.5, "2.5")]
)
def test_the_right_answer_may_be_a_number(write, value, answer):
  """In files for verl."""
  row = {"prompt": [user("q")], "reward_model": {"ground_truth": value}}
  (made,) = cases.read(write(row), "prompts")
  assert made.reference == answer


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_a_conversation_of_lists_with_an_empty_column(write, field):
  """Tables of structs have an empty list where no message has the key."""
  columns = {"role": ["user", "assistant"], "content": ["q", "a"]}
  path = write({field: columns | {"tool_calls": [], "weight": [1, 1]}})
  (row,) = cases.read(path, "demonstrations")
  assert (*row.prompt, *row.turns) == TALK[:2]


@pytest.mark.parametrize(
  ("kind", "field"),
  [("demonstrations", "messages"), ("demonstrations", "conversations"),
   ("preferences", "chosen"), ("prompts", "prompt")],
)  # fmt: skip
def test_lists_of_different_lengths_are_no_conversation(write, kind, field):
  columns = {"from": ["human", "gpt", "human"], "value": ["q", "a"]}
  good = cases.GOOD[kind]
  row = {**good, field: columns} if field in good else {field: columns}
  path = write(good, good, row)
  found = files.load(path, kind, validation_path=path)
  assert len(found.train) == 2
  assert found.notes[0] == (
    "left out 1 row, in which a conversation is lists of different lengths:"
    f" {path}:3: field '{'messages' if field == 'conversations' else field}':"
    " is a conversation as lists of different lengths: 'from' has 3, 'value'"
    " has 2."
  )
