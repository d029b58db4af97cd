"""Rows that could be taken for others, or for none."""

import json

import pytest

from perl_jax.data.sources.jsonl import files, forms, whole
from tests.data.sources.jsonl import cases
from tests.data.sources.jsonl.formed import one, read
from tests.data.text.messages import assistant, user


def test_texts_without_a_prompt_beside_a_question():
  """What two answers begin with is not what was asked."""
  row = {"question": "2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."}
  for kind in ("preferences", "prompts"):
    with pytest.raises(ValueError, match=r"'prompt': missing.*\"question\""):
      read(row, kind=kind)
  named = read(row, columns={"question": "prompt"})[0][1]
  assert named["prompt"] == "2 + 2?" and named["chosen"] == "It is 4."
  del row["question"]
  assert one(row)["prompt"] == "It is"
  talk = {"chosen": "Human: q\n\nAssistant: a", "input": "x"}
  talk["rejected"] = "Human: q\n\nAssistant: b"
  assert one(talk)["chosen"] == "a"


STEPS = {"chosen": "Step 1: Add.", "rejected": "Step 1: Guess."}


@pytest.mark.parametrize("talk", [
  [{"from": "user", "value": "2 + 2?"}], json.dumps([user("2 + 2?")]),
  {"role": ["user"], "content": ["2 + 2?"]},
])  # fmt: skip
def test_texts_without_a_prompt_beside_a_conversation(talk):
  for kind in ("preferences", "prompts", "candidates"):
    with pytest.raises(
      ValueError, match=r"'thread' is a conversation.*columns"
    ):
      read({"thread": talk, **STEPS}, kind=kind)
  named = {"columns": {"thread": "prompt"}}
  assert one({"thread": talk, **STEPS}, **named) == {
    "prompt": [user("2 + 2?")], **STEPS,
  }  # fmt: skip


def test_a_trajectory_is_a_conversation():
  """As UltraInteract has it, for pairs and for SFT."""
  turns = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
  talk = [user("q"), assistant("a")]
  asked = {"trajectory": turns[:1], **STEPS}
  assert one(asked) == {"prompt": talk[:1], **STEPS}
  found = one({"trajectory": turns}, "demonstrations")
  assert found == {"messages": talk}
  for row in (
    {"prompt": "q", "response": "a", "trajectory": turns},
    {"trajectory": [{"state": 1}], "prompt": "q"},
    {"prompt": "p", **STEPS, "trajectory": turns},
  ):
    assert one(row, "prompts") == row


def beside(count=20, **columns):
  """Pairs of texts that begin alike, and columns made of their numbers."""
  return [
    {name: make(n) for name, make in columns.items()}
    | {"chosen": f"I think so {n}.", "rejected": f"I think not {n}."}
    for n in range(count)
  ]


@pytest.mark.parametrize(
  "post", ["May I eat {n} figs?", "我可以吃{n}个无花果吗？"]
)
def test_texts_without_a_prompt_beside_texts(write, post):
  """A column of texts may be what was asked, whatever it is called."""
  rows = beside(post=lambda n: post.format(n=n), id=lambda n: f"post_{n}")
  rows[3]["post"] = None
  path = write(*rows)
  for load, kind in (
    (files.load, "preferences"),
    (files.load, "prompts"),
    (whole.load, "candidates"),
  ):
    with pytest.raises(ValueError, match=rf"{path}.*'post' is a text") as error:
      load(path, kind)
  assert """--config.data.columns='{"post": "prompt"}'""" in str(error.value)
  # Both ways out that the error names.
  read_ = files.load(path, "preferences", validation_path=path, ignore=["post"])
  assert read_.train[0].prompt == (user("I think"),)
  reading = forms.Reading(columns={"post": "prompt"})
  found = files.load(path, "preferences", validation_path=path, reading=reading)
  assert found.train[0].prompt == (user(post.format(n=0)),)
  assert found.train[0].chosen == "I think so 0."


@pytest.mark.parametrize(
  "columns",
  [
    {"id": lambda n: f"prompt_{n}"},
    {"source": lambda n: "Evol Instruct" if n % 2 else "Open Assistant"},
    {"time": lambda n: f"2024-01-{n + 1:02} 10:00"},
    {"comment": lambda n: f"good one {n}" if n % 2 else None},
    {"score": lambda n: n / 2},
    {"system": lambda n: f"You are bot {n}."},
  ],
)
def test_texts_beside_ids_and_labels_are_read(write, columns):
  found = cases.read(write(*beside(**columns)), "preferences")
  assert found[0].prompt[-1] == user("I think")


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_side_without_a_reply(side):
  row = {"prompt": "q", "chosen": ["a"], "rejected": ["b"], side: []}
  with pytest.raises(ValueError, match=f"'{side}': has no reply"):
    read(row)
  assert read(row, kind="candidates")[0][1][side] == []


@pytest.mark.parametrize("given", [["b", "a"], {"x": 1}, True])
def test_an_input_that_is_no_text(given):
  row = {"instruction": "Sort.", "input": given, "output": "a"}
  with pytest.raises(ValueError, match="'input': must be text"):
    read(row, kind="demonstrations")
  with_history = row | {"history": [["q", "a"]]}
  with pytest.raises(ValueError, match="'input': must be text"):
    read(with_history, kind="demonstrations")


def test_an_input_that_is_a_number():
  row = {"instruction": "Double this.", "input": 21, "output": "42"}
  found = one(row, "demonstrations")
  assert found == {"prompt": "Double this.\n\n21", "response": "42"}


@pytest.mark.parametrize(
  "name", ["system", "system_prompt", "system_message", "tools", "functions"]
)
def test_responses_in_other_contexts_are_no_pair(name):
  rows = [
    {"prompt": "q", "response": r, "score": s, name: c}
    for r, s, c in (("Bonjour", 5, ["fr"]), ("Hello", 1, ["en"]))
  ]
  assert read(*rows, margin=1.0) == []
  rows[1][name] = ["fr"]
  assert len(read(*rows, margin=1.0)) == 1


def test_a_margin_that_is_met_as_it_is_written():
  """4.1 - 4.0 is a little less than 0.1 in binary."""
  for more, less in ((4.1, 4.0), (4.2, 4.1), (0.3, 0.2)):
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [more, less]}
    assert len(read(row, margin=0.1)) == 1
    rows = [
      {"prompt": "q", "response": r, "score": s}
      for r, s in (("a", more), ("b", less))
    ]
    assert len(read(*rows, margin=0.1)) == 1
    row["scores"] = [more, less + 1e-6]
    assert read(row, margin=0.1) == []


def test_an_instruction_with_two_answers(write):
  """The reference and what a model said, of which only one is to be learned."""
  row = {"instruction": "q", "output": "a", "response": "b"}
  path = write(row, row)
  with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'output'.*both"):
    cases.read(path, "demonstrations")
  for ignored, answer in (("response", "a"), ("output", "b")):
    found = files.load(
      path, "demonstrations", validation_path=path, ignore=(ignored,)
    )
    assert found.train[0].turns == (assistant(answer),)
  same = cases.read(write(row | {"response": "a"}), "demonstrations")
  assert same[0].turns == (assistant("a"),)
  pair = one(row | {"chosen": "c", "rejected": "d"})
  assert pair["chosen"] == "c"
