"""The right answers of prompts, as the references of a reward function."""

import pytest

from perl_jax.data.sources.jsonl import files
from tests.data.sources.jsonl import cases


@pytest.mark.parametrize(
  ("answer", "reference"),
  [
    ("42.0", "42.0"),
    (42, "42"),
    (42.0, "42"),
    (0.5, "0.5"),
    (-3.0, "-3"),
    (True, "true"),
    (False, "false"),
    (["Paris"], "Paris"),
    ([42.0], "42"),
    ("", ""),
  ],
)
@pytest.mark.parametrize("column", ["answer", "ground_truth"])
def test_an_answer_is_text(write, column, answer, reference):
  path = write({"prompt": "q", column: answer})
  found = files.load(path, "prompts", validation_path=path)
  assert found.train[0].reference == reference
  assert found.notes == ()


@pytest.mark.parametrize("answer", [["a", "b"], {"a": 1}, [["a", "b"]]])
def test_answers_that_are_no_text_are_counted(write, answer):
  path = write(
    {"prompt": "q", "answer": answer},
    {"prompt": "r", "answer": answer, "solution": "4"},
    {"prompt": "s", "answer": []},
    {"prompt": "t", "answer": None},
    {"prompt": "u", "answer": answer},
  )
  found = files.load(path, "prompts", validation_path=path)
  references = [row.reference for row in found.train]
  assert references == [None, "4", None, None, None]
  assert found.notes == (
    f"{path}: 2 rows have answers that are no text; reference is None.",
  )


def test_the_answer_of_a_rule_may_be_a_number(write):
  path = write({"prompt": "q", "reward_model": {"ground_truth": 4.0}})
  assert cases.read(path, "prompts")[0].reference == "4"
