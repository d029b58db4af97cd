"""Responses as rows of files: the best, the pairs, and reading them back."""

import math

import pytest

from perl_jax import files
from perl_jax.data import records
from perl_jax.data.sources.jsonl import files as jsonl_files
from perl_jax.tasks.evaluation import generation

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "A fruit?"}


def response(text, reward=None, stopped=True, row=0):
  found = {
    "row": row, "prompt": "user: A fruit?", "reference": None, "response": text,
    "logprob": -1.5, "length": 3, "stopped": stopped, "repetition": 0.0,
    "judgements": {"gold": 1.0},
  }  # fmt: skip
  return found if reward is None else found | {"reward": reward}


def responses(*rows, prompt=(SYSTEM, USER), **fields):
  record = records.Prompt("p.jsonl:1", "g", prompt, None, fields)
  return generation.Responses(record, list(rows))


SEVERAL = responses(
  response("Stone.", -1.0),
  response("Plum.", 2.0),
  response("Plums and", 3.0, stopped=False),
  response(" ", 4.0),
  response("Plum", 2.0),
)


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({}, "p.jsonl:1"),
    ({"id": None}, "p.jsonl:1"),
    ({"id": None, "question_id": 4}, 4),
    ({"id": 0, "question_id": 4}, 0),
    ({"id": "", "question_id": None}, ""),
  ],
)
def test_the_id_of_a_row(fields, expected):
  found = responses(response("Plum."), **fields)
  assert [row["id"] for row in generation.written(found)] == [expected]


def test_a_row_for_each_response():
  rows = list(generation.written(SEVERAL))
  assert rows[1] == {
    "id": "p.jsonl:1", "prompt": [SYSTEM, USER], "response": "Plum.",
    "index": 1, "finished": True, "length": 3, "logprob": -1.5, "reward": 2.0,
    "best": False, "gold": 1.0,
  }  # fmt: skip
  assert [row["best"] for row in rows] == [False, False, False, True, False]
  assert [row["finished"] for row in rows] == [True, True, False, True, True]
  (row,) = generation.written(responses(response("Plum."), id=7))
  assert row["id"] == 7
  assert "reward" not in row and "best" not in row
  (row,) = generation.written(responses(response("Plum."), question_id=81))
  assert row["id"] == 81


def test_tools_and_variables_are_beside_the_prompt_and_read_again(tmp_path):
  beside = {"tools": [{"name": "look"}], "chat_template_kwargs": {"mode": "a"}}
  found = responses(response("Plum.", 1.0), prompt=(SYSTEM | beside, USER))
  (row,) = generation.written(found)
  assert row["prompt"] == [SYSTEM, USER]
  assert {key: row[key] for key in beside} == beside
  path = tmp_path / "best.jsonl"
  files.write_jsonl(path, [generation.best_row(found, "drop")])
  read = jsonl_files.load(
    str(path), "demonstrations", validation_path=str(path)
  )
  assert read.train[0].prompt == (SYSTEM | beside, USER)


def test_the_best_is_whole_and_the_first_of_equals():
  found = generation.best_row(SEVERAL, "drop")
  assert found["completion"] == "Plum." and found["reward"] == 2.0
  assert generation.best_row(SEVERAL, "keep")["completion"] == "Plums and"
  equal = responses(response("a", 1.0), response("b", 1.0))
  assert equal.best == 0
  assert generation.best_row(equal, "drop")["completion"] == "a"


def test_a_pair_has_two_rewards_and_two_texts():
  found = generation.pair_row(SEVERAL, "drop")
  assert (found["chosen"], found["rejected"]) == ("Plum.", "Stone.")
  assert (found["reward_chosen"], found["reward_rejected"]) == (2.0, -1.0)
  for rows in (
    [response("a", 1.0)],
    [response("a", 1.0), response("b", 1.0)],
    [response("a", 1.0), response("a ", 0.0)],
    [response("a", 1.0), response("b", 0.0, stopped=False)],
  ):
    assert generation.pair_row(responses(*rows), "drop") is None
  cut = responses(response("a", 1.0, stopped=False))
  assert generation.best_row(cut, "drop") is None
  assert generation.best_row(cut, "keep")["completion"] == "a"


def test_responses_are_those_of_their_prompts():
  prompts = [records.Prompt(str(i), "g", (USER,), None) for i in range(3)]
  rows = [response(f"{i} {n}", row=i) for i in (0, 2) for n in range(2)]
  found = generation.grouped(rows, prompts)
  assert [each.record.id for each in found] == ["0", "2"]
  texts = [[row["response"] for row in each.rows] for each in found]
  assert texts == [["0 0", "0 1"], ["2 0", "2 1"]]


TOOLS = [{"type": "function", "function": {"name": "order"}}]
CALLED = {
  "role": "assistant",
  "tool_calls": [
    {"type": "function", "function": {"name": "order", "arguments": {}}}
  ],
}
CALL = CALLED | {"content": records.calls_text(CALLED)}


@pytest.mark.parametrize(
  "prompt",
  [
    (USER,),
    (SYSTEM, USER),
    (
      SYSTEM | {"tools": TOOLS},
      USER,
      CALL,
      {"role": "tool", "content": "done"},
      USER,
    ),
  ],
  ids=["user", "system", "tools"],
)
def test_the_files_are_read_back(tmp_path, prompt):
  """As what they are for, with the very prompt, and nothing refused."""
  found = [
    responses(
      response(f"Plum {n}.", 2.0), response(f"Stone {n}.", 0.5), prompt=prompt
    )
    for n in range(4)
  ]
  rows = [row for each in found for row in generation.written(each)]
  best = [generation.best_row(each, "drop") for each in found]
  pairs = [generation.pair_row(each, "drop") for each in found]

  def read(name, content, kind, **options):
    path = str(tmp_path / name)
    files.write_jsonl(path, content)
    return jsonl_files.load(path, kind, validation_path=path, **options).train

  for n, row in enumerate(read("best.jsonl", best, "demonstrations")):
    assert row.prompt == prompt
    assert row.turns == ({"role": "assistant", "content": f"Plum {n}."},)
  for n, row in enumerate(read("pairs.jsonl", pairs, "preferences")):
    assert row.prompt == prompt
    assert (row.chosen, row.rejected) == (f"Plum {n}.", f"Stone {n}.")
  everything = read("responses.jsonl", rows, "demonstrations")
  assert len(everything) == 8 and everything[0].prompt == prompt
  asked = read("responses.jsonl", rows, "prompts")
  assert len(asked) == 8 and asked[0].prompt == prompt
  # All pairs of one prompt whose rewards differ by the margin.
  made = read(
    "responses.jsonl",
    rows,
    "preferences",
    reading=jsonl_files.forms.Reading(margin=1.0),
  )
  assert len(made) == 16 and made[0].chosen == "Plum 0."


def test_a_sample_for_people_is_the_best_or_the_first():
  found = generation.sample(SEVERAL)
  assert found["response"] == " " and found["response_reward"] == 4.0
  assert found["response_gold"] == 1.0
  found = generation.sample(responses(response("a"), response("b")))
  assert found["response"] == "a" and "response_reward" not in found


def test_a_reward_that_is_no_number_is_refused():
  rows = [response("a", 1.0) | {"id": "p.jsonl:1"}]
  generation.require_finite([*rows, response("b")])
  for bad in (math.nan, math.inf):
    rows.append(response("b", bad) | {"id": "p.jsonl:2"})
    with pytest.raises(ValueError, match=r"p\.jsonl:2: the reward .* is"):
      generation.require_finite(rows)
    rows.pop()
