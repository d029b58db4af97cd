"""Replies beside the messages that they follow, and what is beside neither."""

import pytest

from perl_jax.data.sources.jsonl import files, forms, messages
from tests.data.sources.jsonl import cases
from tests.data.sources.jsonl.formed import read
from tests.data.text.messages import assistant, system, user

ASKED = [system("Be brief."), user("q")]


@pytest.mark.parametrize(
  ("name", "talk"),
  [
    ("messages", ASKED),
    ("conversations", [{"from": "human", "value": "q"}]),
  ],
)
@pytest.mark.parametrize("reply", ["a", assistant("a"), [assistant("a")]])
@pytest.mark.parametrize("field", ["response", "completion"])
def test_a_response_beside_messages_follows_them(
  write, name, talk, reply, field
):
  path = write({name: talk, field: reply})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt[-1] == user("q") and len(row.prompt) == len(talk)
  assert row.turns == (assistant("a"),)
  (asked,) = cases.read(path, "prompts")
  assert asked.prompt == row.prompt and asked.reference == "a"


def test_a_label_beside_messages_and_a_response(write):
  path = write({"messages": ASKED, "response": "a", "label": False})
  (row,) = cases.read(path, "labelled")
  assert row.prompt == tuple(ASKED)
  assert (row.response, row.label) == ("a", 0.0)


def test_replies_with_scores_beside_messages():
  row = {"messages": ASKED, "responses": ["a", "b"], "scores": [1, 3]}
  ((_, pair),) = read(row, margin=1.0)
  assert pair == {"prompt": ASKED, "chosen": "b", "rejected": "a"}
  labels = read(row, kind="labelled", threshold=2.0)
  assert [fields["label"] for _, fields in labels] == [False, True]
  assert all(fields["prompt"] == ASKED for _, fields in labels)


def test_scored_responses_to_other_messages_are_no_pair():
  rows = [
    {"messages": [user(q)], "response": a, "score": s}
    for q, a, s in (("q", "a", 1), ("q", "b", 3), ("other", "c", 9))
  ]
  ((_, pair),) = read(*rows, margin=1.0)
  assert pair == {"prompt": [user("q")], "chosen": "b", "rejected": "a"}


def test_a_prompt_that_is_in_the_messages_beside_it(write):
  """As prompts with their chat form beside them have it."""
  path = write({"prompt": "q ", "messages": ASKED, "response": "a"})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == tuple(ASKED) and row.turns == (assistant("a"),)
  path = write({"prompt": "q", "messages": ASKED, "ground_truth": "4"})
  (asked,) = cases.read(path, "prompts")
  assert asked.prompt == tuple(ASKED) and asked.reference == "4"
  path = write({"prompt": "another", "messages": ASKED, "response": "a"})
  with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'messages'"):
    cases.read(path, "demonstrations")


@pytest.mark.parametrize(
  ("beside", "columns"),
  [
    ({"answer": "a"}, '{"answer": "response"}'),
    ({"output": "a"}, '{"output": "response"}'),
    (
      {"chosen_response": "a", "rejected_response": "b"},
      '{"chosen_response": "chosen", "rejected_response": "rejected"}',
    ),
    (
      {
        "preferred_output": [assistant("a")],
        "non_preferred_output": [assistant("b")],
      },
      '{"preferred_output": "chosen", "non_preferred_output": "rejected"}',
    ),
  ],
)
def test_replies_under_other_names_beside_messages(write, beside, columns):
  """The option in the error reads them."""
  path = write({"messages": ASKED, **beside})
  kind = "preferences" if len(beside) > 1 else "demonstrations"
  with pytest.raises(ValueError) as error:
    cases.read(path, kind)
  assert f"--config.data.columns='{columns}'" in str(error.value)
  reading = forms.stated(columns)
  found = files.load(path, kind, validation_path=path, reading=reading)
  assert found.train[0].prompt == tuple(ASKED)


@pytest.mark.parametrize(
  ("beside", "column"),
  [
    ("b", "rejected_response"),
    ([*ASKED, assistant("b")], "rejected_messages"),
  ],
)
def test_a_rejected_reply_beside_a_whole_conversation(write, beside, column):
  """As ms-swift has it: the messages end with the chosen reply."""
  path = write({"messages": [*ASKED, assistant("a")], column: beside})
  with pytest.raises(ValueError, match=rf'"{column}": "rejected"'):
    cases.read(path, "preferences")
  reading = forms.stated(f'{{"{column}": "rejected"}}')
  found = files.load(path, "preferences", validation_path=path, reading=reading)
  (pair,) = found.train
  assert pair.prompt == tuple(ASKED)
  assert (pair.chosen, pair.rejected) == ("a", "b")


def test_pairs_beside_a_conversation_that_ends_with_an_answer():
  row = {"messages": [*ASKED, assistant("a")], "chosen": "x 1"}
  with pytest.raises(
    messages.UnusableError,
    match=r"'messages' is a conversation that ends with an answer.*ignore",
  ):
    read(row | {"rejected": "x 2"})


@pytest.mark.parametrize(
  "row",
  [
    {"responses": ["It is 4.", "It is 5."], "scores": [3, 1]},
    {"response": "It is 4.", "score": 3},
    {"answers": [{"answer": [assistant("a")], "rank": n} for n in (1, 2)]},
  ],
)
@pytest.mark.parametrize(
  ("column", "asked"),
  [("question", "2 + 2?"), ("context", [user("2 + 2?")])],
)
def test_replies_with_scores_need_a_prompt(row, column, asked):
  """Words that two answers begin with are not what was asked."""
  with pytest.raises(
    messages.UnusableError,
    match=rf"f:1: field 'prompt': missing.*\"{column}\": \"prompt\"",
  ):
    read({column: asked, **row}, margin=1.0)
  named = {"columns": {column: "prompt"}, "margin": 1.0}
  for _, pair in read({column: asked, **row}, **named):
    assert pair["prompt"] == asked


def test_a_conversation_in_a_column_of_another_name(write):
  talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
  path = write({"id": "1", "items": talk})
  with pytest.raises(ValueError, match='"items": "messages"'):
    cases.read(path, "demonstrations")
  path = write({"id": "1", "thread": talk[:1]})
  with pytest.raises(ValueError, match='"thread": "prompt"'):
    cases.read(path, "prompts")


def test_the_chosen_replies_of_pairs_are_learned_with_the_option(write):
  for chosen, ours in (
    ("a", "response"),
    ([*ASKED, assistant("a")], "messages"),
  ):
    path = write({"prompt": "q", "chosen": chosen, "rejected": chosen})
    with pytest.raises(ValueError) as error:
      cases.read(path, "demonstrations")
    columns = f'{{"chosen": "{ours}"}}'
    assert f"columns='{columns}'" in str(error.value)
    assert "ignore=\"('rejected',)\"" in str(error.value)
    found = files.load(
      path,
      "demonstrations",
      validation_path=path,
      reading=forms.stated(columns),
      ignore=("rejected",),
    )
    assert found.train[0].turns == (assistant("a"),)


@pytest.mark.parametrize(
  "row",
  [
    {"instruction": "q", "input": "", "output": "a", "kto_tag": True},
    {"messages": [user("q"), assistant("a")], "kto_tag": True},
  ],
)
def test_a_flag_is_named_as_the_label(write, row):
  """Of KTO files as LLaMA-Factory has them."""
  path = write(row)
  with pytest.raises(ValueError, match='"kto_tag": "label"'):
    cases.read(path, "labelled")
  reading = forms.stated('{"kto_tag": "label"}')
  found = files.load(path, "labelled", validation_path=path, reading=reading)
  assert (found.train[0].response, found.train[0].label) == ("a", 1.0)


def test_a_list_of_texts_is_no_response(write):
  path = write({"instruction": "q", "output": ["a", "b"]})
  with pytest.raises(ValueError, match=r"list of 2 texts.*`chosen`"):
    cases.read(path, "demonstrations")


def test_names_of_columns_are_no_replies(write):
  row = {"prompt": "q", "response_a": "It is 2.", "response_b": "It is 3."}
  path = write(row | {"chosen": "response_b", "rejected": "response_a"})
  with pytest.raises(ValueError, match=r"'response_b'.*names of columns"):
    cases.read(path, "preferences")
  path = write(row | {"chosen": "response_b", "rejected": "It is 2."})
  (pair,) = cases.read(path, "preferences")
  assert pair.chosen == "response_b"
