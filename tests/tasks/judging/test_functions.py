"""Checks of a data set and the user's functions as judges; pure Python."""

import math
import textwrap

import pytest

from perl_jax.tasks.judging import functions, reward_models
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.judging.pairs import Pair
from perl_jax.tasks.settings import judge as settings
from tests.tasks.judging import toys

CALL = '{"add_item": {"item": "mocha", "quantity": "1"}}'


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def load(text, name="f", seconds=0.0):
    (tmp_path / "mine.py").write_text(textwrap.dedent(text))
    named = settings.Judge("function", "x", f"./mine.py:{name}", "mine")
    return functions.load(named, [toys.row(0), toys.row(1)], seconds)

  return load


def test_the_gold_check_of_coffee_bar():
  prompt = toys.row(0, reference=CALL)
  judge = functions.CheckJudge("gold", "gold", "coffee_bar")
  wrong, right = "{}", CALL.replace(" ", "")
  pairs = [
    Pair(prompt, right, wrong), Pair(prompt, wrong, right),
    Pair(prompt, "x", wrong), Pair(prompt, right, CALL),
  ]  # fmt: skip
  assert toys.verdicts(judge(pairs)) == [(1, 1), (-1, -1), (0, 0), (0, 0)]


def test_a_function_of_scores_is_a_reward_function(here):
  judge = here(
    """
    def f(prompts, responses, rows):
      assert [r["id"] for r in rows] == [p[0]["content"].replace("say", "row")
                                         for p in prompts]
      return [len(text) for text in responses]
    """
  )
  found = judge(toys.pairs(("long", "s"), ("s", "long"), ("ab", "cd")))
  assert toys.verdicts(found) == [(1, 1), (-1, -1), (0, 0)]
  assert found[0][0].reason == "policy 4, other 1"


def test_what_stands_beside_the_policy_is_scored_once(here, tmp_path):
  judge = here(
    """
    def f(prompts, responses, rows):
      with open("asked.txt", "a") as file:
        for row, text in zip(rows, responses):
          print(row["id"], text, file=file)
      return [len(text) for text in responses]
    """
  )
  asked = tmp_path / "asked.txt"
  asked.unlink(missing_ok=True)  # of the trial
  first = toys.pairs(("mine", "other"), ("another", "one"))
  assert toys.verdicts(judge(first)) == [(-1, -1), (1, 1)]
  later = toys.pairs(("longer", "other"), ("o", "one"))
  assert toys.verdicts(judge(later)) == [(1, 1), (-1, -1)]
  # The row is a part of what is known: the same text to another prompt is new.
  assert toys.verdicts(judge(toys.pairs(("x", "one")))) == [(-1, -1)]
  ids = [pair.row.id for pair in first]
  assert asked.read_text().splitlines() == [
    f"{ids[0]} mine", f"{ids[1]} another", f"{ids[0]} other", f"{ids[1]} one",
    f"{ids[0]} longer", f"{ids[1]} o",
    f"{ids[0]} x", f"{ids[0]} one",
  ]  # fmt: skip


def test_a_function_of_pairs_is_asked_in_both_orders(here):
  judge = here(
    """
    def f(prompts, a, b, rows):
      return ["a" if x < y else "tie" if x == "first" else "B "
              for x, y in zip(a, b)]
    """
  )
  found = judge(toys.pairs(("a", "b"), ("b", "a"), ("first", "first")))
  assert toys.verdicts(found) == [(1, 1), (-1, -1), (0, 0)]


def test_one_that_takes_the_first_is_not_believed(here):
  judge = here("def f(prompts, a, b, rows): return [1.5 for _ in a]")
  assert toys.verdicts(judge(toys.pairs(("x", "y")))) == [(1, -1)]


def test_numbers_none_and_async(here):
  judge = here(
    """
    import numpy as np

    async def f(prompts, a, b, rows):
      known = {"up": 0.1, "down": -3, "same": 0, "unknown": None}
      return [known.get(text, 0) for text in a]
    """
  )
  pairs = toys.pairs(*((t, "-") for t in ("up", "down", "same", "unknown")))
  found = judge(pairs)
  assert toys.verdicts(found)[:3] == [(1, 0), (-1, 0), (0, 0)]
  assert math.isnan(found[3][0].verdict)
  assert found[3][0].fault == pairs_lib.UNPARSABLE and not found[3][1].fault


def test_arrays(here):
  judge = here(
    """
    import numpy as np
    def f(prompts, a, b, rows):
      return np.array([len(x) - len(y) for x, y in zip(a, b)])
    """
  )
  assert toys.verdicts(judge(toys.pairs(("xx", "y")))) == [(1, 1)]


@pytest.mark.parametrize(
  "body, texts",
  [
    ("return ['a']", ("given 2 pair(s)", "returned 1 verdicts")),
    ("return 'ab'", ("returned str",)),
    ("return ['a', 'c']", ("returned 'c' for row row 1", "'a', 'b' or 'tie'")),
    ("return [True, False]", ("returned 'True'",)),
    ("return [float('nan')] * 2", ("returned 'nan'",)),
    ("return 1 / 0", ("ZeroDivisionError", "mine.py, line 2", "any text")),
    ("import time; time.sleep(60)", ("config.timeout=0.2", "line 2")),
  ],
)
def test_what_a_function_of_pairs_does_wrong(here, body, texts):
  """It is said before anything is sampled, and names the field."""
  with pytest.raises(ValueError) as caught:
    here(f"def f(prompts, a, b, rows):\n  {body}\n", seconds=0.2)
  for text in ("config.judges", "./mine.py:f", *texts):
    assert text in str(caught.value)


@pytest.mark.parametrize(
  "body, texts",
  [
    ("return ['a', 'b']", ("config.judges", "no number")),
    ("import time; time.sleep(60)", ("config.timeout=0.2", "config.judges")),
  ],
)
def test_what_a_function_of_scores_does_wrong(here, body, texts):
  with pytest.raises(ValueError) as caught:
    here(f"def f(prompts, responses, rows):\n  {body}\n", seconds=0.2)
  for text in texts:
    assert text in str(caught.value)
  assert "reward.fn" not in str(caught.value)


def test_a_function_that_is_not_there(here):
  with pytest.raises(ValueError, match=r"config\.judges.*It has f"):
    here("def f(prompts, a, b, rows): pass", name="g")


def test_what_a_reward_model_has_no_rows_for():
  """Too long, or the same once a template has trimmed both."""
  (long, same) = toys.pairs(("x" * 99, "y"), ("x ", "\nx"))
  assert toys.verdicts([reward_models._unread(same)]) == [(0, 0)]
  for opinion in reward_models._unread(long):
    assert math.isnan(opinion.verdict) and opinion.fault == pairs_lib.CUT


def test_nobody_is_asked_about_equal_responses():
  asked = []

  class Judge:
    label, everywhere = "x", False

    def __call__(self, pairs):
      asked.extend(pairs)
      return [pairs_lib.by_scores(1.0, 0.0) for _ in pairs]

  pairs = toys.pairs(("x", "x"), ("x", "y"), ("z", "z"), ("y", "x"))
  found = pairs_lib.judge(Judge(), pairs)
  assert toys.verdicts(found) == [(0, 0), (1, 1), (0, 0), (1, 1)]
  assert asked == [pairs[1], pairs[3]]
  asked.clear()
  assert pairs_lib.judge(Judge(), pairs[:1]) and not asked
