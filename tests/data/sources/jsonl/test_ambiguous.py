"""Rows that could be taken for others, or for none."""

import pytest

from tests.data.sources.jsonl.formed import one, read


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
