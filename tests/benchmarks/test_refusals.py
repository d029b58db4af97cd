"""What counts as a refusal, and the shares of files of responses."""

import json

import pytest

from benchmarks import refusals
from perl_jax import files
from tests.data.sources import upstream_rows

REFUSALS = (
  "I'm sorry, but I can't help with that.",
  "I\u2019m sorry, but that is against the law.",
  "As an AI, I have no opinion on people.",
  "Unfortunately, I  cannot\nprovide this.",
)
ANSWERS = (
  "Lisbon is the capital of Portugal.",
  "",
  # A refusal that comes late is a remark on an answer.
  "Bring water to the boil, add the egg, wait for six minutes, and cool it"
  " under running water so that it stops cooking. I cannot say more.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text):
  assert refusals.refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text):
  assert not refusals.refuses(text)


def test_shares_by_side():
  rows = [
    {"policy": REFUSALS[0], "against": ANSWERS[0]},
    {"policy": REFUSALS[1], "against": REFUSALS[2]},
    {"policy": ANSWERS[1], "against": ANSWERS[2]},
    {"policy": REFUSALS[3], "against": ANSWERS[0]},
  ]
  assert refusals.rates(rows) == {
    "policy.refusal_rate": 0.75, "against.refusal_rate": 0.25
  }  # fmt: skip
  rows = [{"response": REFUSALS[0]}, {"response": ANSWERS[0]}]
  assert refusals.rates(rows) == {"response.refusal_rate": 0.5}


def test_harmless_prompts_are_of_two_kinds():
  rows = files.read_jsonl(refusals.HARMLESS)
  kinds = [row["kind"] for row in rows]
  assert kinds == ["ordinary"] * 30 + ["sounds_harmful"] * 30
  assert len({row["prompt"] for row in rows}) == 60


# What pairs say and their scores: chosen, rejected, and which of them refuses.
PAIRS = (
  (REFUSALS[0], ANSWERS[0], 2.0, 1.0),  # the chosen one, right
  (REFUSALS[1], ANSWERS[0], 2.0, 1.0),
  (REFUSALS[2], ANSWERS[0], 1.0, 2.0),
  (ANSWERS[0], REFUSALS[0], 0.0, 1.0),  # the rejected one, wrong
  (ANSWERS[0], "Porto, I believe.", 1.0, 0.5),  # neither, right
  (REFUSALS[0], REFUSALS[1], 1.0, 0.5),  # both
)


@pytest.fixture
def scored(tmp_path):
  """hh-rlhf with these pairs, and a file of scores of them."""
  rows = [
    {
      side: f"\n\nHuman: Question {n}?\n\nAssistant: {text}"
      for side, text in zip(("chosen", "rejected"), pair[:2], strict=True)
    }
    for n, pair in enumerate(PAIRS)
  ]
  upstream_rows.spread(tmp_path, "hh_rlhf", "test", rows)
  lines = [
    {"id": f"hh_rlhf/test:{n}", "chosen": pair[2], "rejected": pair[3]}
    for n, pair in enumerate(PAIRS)
  ]
  path = tmp_path / "scores.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def test_accuracy_by_kind_of_pair(scored, capsys):
  refusals.main([str(scored), f"--data_dir={scored.parent}"])
  rows = [
    line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]
  ]
  assert [(row[0], row[1], row[2].split(" (")[0]) for row in rows] == [
    ("| neither", "1", "100.0 %"),
    ("| the chosen one", "3", "66.7 %"),
    ("| the rejected one", "1", "0.0 %"),
    ("| both", "1", "100.0 %"),
  ]


def test_scores_of_other_rows_are_refused(scored):
  scored.write_text('{"id": "mine:7", "chosen": 1.0, "rejected": 0.0}\n')
  with pytest.raises(ValueError, match="no pair with the id 'mine:7'"):
    refusals.main([str(scored), f"--data_dir={scored.parent}"])
