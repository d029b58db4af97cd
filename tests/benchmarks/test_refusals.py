"""What counts as a refusal, and the shares of files of responses."""

import pytest

from benchmarks import refusals
from perl_jax import files

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
