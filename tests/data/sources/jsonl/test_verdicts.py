"""Public data sets of two replies and a verdict, as their cards describe them.

In each the reply "good" is the one that people preferred.
"""

import pytest

from tests.data.sources.jsonl import cases, formed
from tests.data.text.messages import assistant, user

TALK = [user("q")]
ARENA = {"model_a": "x", "model_b": "y", "language": "English"}
# What is in front of the replies, the reply that is preferred first, and the
# verdict for each order.
FORMS = {
  "PKU-Alignment/PKU-SafeRLHF": (
    {"prompt": "q", "safer_response_id": 1},
    "response_0", "response_1",
    {"better_response_id": 0}, {"better_response_id": 1},
  ),
  "nvidia/HelpSteer3": (
    {"domain": "general", "context": TALK},
    "response1", "response2",
    {"overall_preference": -1}, {"overall_preference": 3},
  ),
  "lmarena-ai/arena-human-preference-55k": (
    {"prompt": '["q"]', **ARENA},
    "response_a", "response_b",
    {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
  ),
  "an arena's texts": (
    {"prompt": "q", **ARENA},
    "response_a", "response_b", {"winner": "model_a"}, {"winner": "model_b"},
  ),
  "stanfordnlp/SHP": (
    {"history": "q", "score_A": 3, "score_B": 9},
    "human_ref_A", "human_ref_B", {"labels": 1}, {"labels": 0},
  ),
  "tatsu-lab/alpaca_farm": (
    {"instruction": "q", "input": ""},
    "output_1", "output_2", {"preference": 1}, {"preference": 2.0},
  ),
  "openai/webgpt_comparisons": (
    {"question": {"full_text": "q", "id": "1"}},
    "answer_0", "answer_1",
    {"score_0": 0.5, "score_1": -0.5}, {"score_0": -1, "score_1": 1},
  ),
}  # fmt: skip
TIES = [
  {"response1": "a", "response2": "b", "overall_preference": 0},
  {"response_a": "a", "response_b": "b", "winner": "tie (bothbad)"},
  {"response_a": "a", "response_b": "b", "winner": ["model_a"]},
  {
    "response_a": "a", "response_b": "b",
    "winner_model_a": 0, "winner_model_b": 0,
  },
  {"answer_0": "a", "answer_1": "b", "score_0": 0.0, "score_1": 0.0},
]  # fmt: skip


def as_written(text, replies):
  """The Kaggle file of the arena has lists of texts."""
  return f'["{text}"]' if replies[0] == "[" else text


@pytest.mark.parametrize("name", FORMS)
def test_the_preferred_reply_is_chosen(write, name):
  before, one, other, first, second = FORMS[name]
  good, bad = (
    as_written(text, str(before.get("prompt", " "))) for text in ("good", "bad")
  )
  for verdict, replies in (
    (first, {one: good, other: bad}),
    (second, {one: bad, other: good}),
  ):
    path = write(before | replies | verdict)
    (row,) = cases.read(path, "preferences")
    assert row.prompt == (user("q"),)
    assert (row.chosen, row.rejected) == ("good", "bad")
    (prompt,) = cases.read(path, "prompts")
    assert prompt.prompt == (user("q"),) and prompt.reference is None


@pytest.mark.parametrize(
  ("winner", "chosen"), [("model_a", "good"), ("model_b", "bad")]
)
def test_conversations_of_an_arena(write, winner, chosen):
  """lmsys/chatbot_arena_conversations: several turns, which both share."""
  start = [user("p"), assistant("r"), user("q")]
  row = ARENA | {
    "winner": winner,
    "conversation_a": [*start, assistant("good")],
    "conversation_b": [*start, assistant("bad")],
  }
  (made,) = cases.read(write(row), "preferences")
  assert list(made.prompt) == start and made.chosen == chosen


@pytest.mark.parametrize("row", TIES)
def test_a_tie_is_left_out_and_its_prompt_is_not(write, row):
  name = next(iter(row))
  path = write({"prompt": "q"} | row, {"prompt": "p"} | row)
  with pytest.raises(ValueError, match="in which neither reply is better") as e:
    cases.read(path, "preferences")
  assert f"neither {name} nor " in str(e.value)
  assert [r.prompt for r in cases.read(path, "prompts")] == [
    (user("q"),),
    (user("p"),),
  ]


def test_columns_of_a_user(write):
  """Another verdict of the same rows."""
  before, one, other, _, second = FORMS["PKU-Alignment/PKU-SafeRLHF"]
  row = {**before, one: "a", other: "b", **second, "safer_response_id": 0}
  fields = formed.one(row)
  assert fields["chosen"] == "b"
  named = {k: v for k, v in row.items() if k != "better_response_id"}
  fields = formed.one(
    named, columns={"safer_response_id": "better_response_id"}
  )
  assert fields["chosen"] == "a"


def test_a_pair_is_no_verdict():
  """Chosen and rejected are there, whatever else is."""
  row = {"prompt": "q", "chosen": "a", "rejected": "b"}
  row |= {"response_0": "b", "response_1": "a", "better_response_id": 0}
  assert formed.one(row)["chosen"] == "a"


def test_tools_of_preferred_outputs():
  """OpenAI's preference fine-tuning."""
  tools = [{"type": "function", "function": {"name": "f"}}]
  row = {
    "input": {"messages": TALK, "tools": tools, "parallel_tool_calls": True},
    "preferred_output": [assistant("good")],
    "non_preferred_output": [assistant("bad")],
  }
  fields = formed.one(row)
  assert fields["prompt"] == TALK and fields["tools"] == tools
  assert fields["chosen"] in ([assistant("good")], "good")


def test_ranks_are_scores_downwards(write):
  """berkeley-nest/Nectar: seven answers with a rank each."""
  answers = [
    {"answer": f"a{rank}", "model": "m", "rank": float(rank)}
    for rank in (2, 1, 3)
  ]
  row = {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": answers}
  made = formed.read(row, margin=2)
  assert [(f["chosen"], f["rejected"]) for _, f in made] == [("a1", "a3")]
  assert len(formed.read(row, margin=1)) == 3


@pytest.mark.parametrize(
  "row",
  [
    {"conversations": ["q", "a", "r", "b"], "source": "wikihow"},
    {"id": "1", "data": ["q", "a", "r", "b"]},
  ],
)
def test_texts_by_turns(write, row):
  """GAIR/lima and stingning/ultrachat."""
  (made,) = cases.read(write(row), "demonstrations")
  assert (*made.prompt, *made.turns) == (
    user("q"), assistant("a"), user("r"), assistant("b"),
  )  # fmt: skip


def test_texts_that_name_their_speakers_are_not_by_turns(write):
  row = {"conversations": ["System: s", "User: q", "Assistant: a"]}
  with pytest.raises(ValueError, match="in which a message is no object"):
    cases.read(write(row, row), "demonstrations")


def test_data_beside_a_prompt_is_no_conversation(write):
  row = {"prompt": "q", "response": "a", "data": ["x", "y"]}
  (made,) = cases.read(write(row), "demonstrations")
  assert made.prompt == (user("q"),)


def test_strength_of_a_preference(write):
  """nvidia/HelpSteer2, preference: from -3, the first is much better, to 3."""
  row = {"prompt": "q", "response_1": "a", "response_2": "b"}
  found = [
    formed.one(row | {"preference_strength": strength})
    for strength in (-3, "1")
  ]
  assert [(f["chosen"], f["rejected"]) for f in found] == [
    ("a", "b"), ("b", "a"),
  ]  # fmt: skip
  with pytest.raises(ValueError, match=r"preference_strength 0\. A verdict is"):
    formed.one(row | {"preference_strength": 0})


@pytest.mark.parametrize("winner", ["response_b", "Model B", "MODEL_B"])
def test_a_winner_is_the_name_of_a_column(winner):
  row = {"prompt": "q", "response_a": "a", "response_b": "b"}
  assert formed.one(row | {"winner": winner})["chosen"] == "b"
  for unknown in ("B", "b", 1, "response_c", "tie", "b_response"):
    with pytest.raises(ValueError, match="'model_a' or 'model_b'"):
      formed.one(row | {"winner": unknown})


def test_replies_that_are_counted_from_one_are_refused(write):
  """They would be read the wrong way round where the verdict is 1."""
  row = {"prompt": "q", "response_0": "a", "response_1": "b"}
  path = write(*(row | {"better_response_id": n} for n in (1, 1, 2)))
  with pytest.raises(ValueError, match=r"rows\.jsonl:3: field .* is 2, but"):
    cases.read(path, "preferences")
  assert len(cases.read(path, "prompts")) == 3
