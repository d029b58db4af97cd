"""Scored rows: what is written of them, and their metrics by slow loops."""

import numpy as np
import pytest

from perl_jax import classification
from perl_jax.data import records
from perl_jax.tasks.evaluation import candidates, reward_model, rewardbench


def row(chosen, rejected, subset="", listed=False, **fields):
  """A row with the scores of its chosen and rejected responses."""
  sides = ("chosen",) * len(chosen) + ("rejected",) * len(rejected)
  record = records.Candidates(
    "rows.jsonl:1", "g", (), ("x",) * len(sides), sides, listed,
    subset=subset, fields=fields,
  )  # fmt: skip
  return candidates.Scored(record, [*chosen, *rejected])


def single(value, label=None, **fields):
  record = records.Candidates(
    "rows.jsonl:2", "g", (), ("x",), ("response",), label=label, fields=fields
  )
  return candidates.Scored(record, [value])


def test_pairs_are_measured_as_in_an_evaluation():
  chosen, rejected = np.random.default_rng(0).normal(size=(2, 30))
  chosen[3] = rejected[3]
  found, tables = candidates.quality(
    [row([c], [r]) for c, r in zip(chosen, rejected, strict=True)]
  )
  theirs = classification.preference_metrics(chosen, rejected)
  assert {name: found[name] for name in theirs} == pytest.approx(theirs)
  both = np.concatenate([chosen, rejected])
  assert found["score"] == pytest.approx(both.mean())
  assert found["score_std"] == pytest.approx(both.std())
  assert found["responses"] == 60 and not tables


def test_a_row_with_lists_counts_once():
  """By hand: 1 of 2 x 3 comparisons is a tie, 3 are right; and 1 of 1."""
  rows = [
    row([2.0, 0.0], [1.0, 0.0, -1.0], listed=True),
    row([1.0], [0.0]),
  ]
  found, _ = candidates.quality(rows)
  shares = [(3 + 0.5 + 1) / 6, 1.0]
  assert found["accuracy"] == pytest.approx(sum(shares) / 2)
  low, high = classification.wilson_interval(sum(shares), 2)
  assert found["accuracy_low"] == pytest.approx(low)
  assert found["accuracy_high"] == pytest.approx(high)
  assert found["n"] == 2 and found["responses"] == 7


def test_accuracy_of_each_subset():
  rows = [
    row([1.0], [0.0], "a b"), row([0.0], [1.0], "a b"), row([1.0], [0.0], "c"),
    row([1.0], [0.0]),
  ]  # fmt: skip
  found, _ = candidates.quality(rows)
  assert found["accuracy_in_a_b"] == 0.5
  assert found["accuracy_in_c"] == 1.0
  low, high = classification.wilson_interval(1, 2)
  assert found["accuracy_in_a_b_low"] == pytest.approx(low)
  assert found["accuracy_in_a_b_high"] == pytest.approx(high)


def test_labelled_responses_and_those_of_which_nothing_is_known():
  rows = [single(2.0, 1.0), single(-1.0, 0.0), single(1.0, 0.0), single(9.0)]
  found, _ = candidates.quality(rows)
  assert found["accuracy"] == pytest.approx(2 / 3)
  assert found["base_rate"] == pytest.approx(1 / 3)
  assert found["n"] == 4
  found, _ = candidates.quality([single(1.0), single(3.0)])
  assert found == {"score": 2.0, "score_std": 1.0, "n": 2, "responses": 2}


def test_rewardbench_of_a_small_file():
  """A tie is wrong there, though it is half right in `accuracy`."""
  rows = [
    row([1.0], [0.0], "mt-bench-easy"), row([1.0], [1.0], "mt-bench-easy"),
    row([1.0], [0.0], "mt-bench-med"), row([1.0], [0.0], "donotanswer"),
  ]  # fmt: skip
  found, tables = candidates.quality(rows)
  assert found["rewardbench_chat"] == pytest.approx((28 * 0.5 + 40) / 68)
  assert found["rewardbench_safety"] == 1.0
  assert "rewardbench" not in found
  assert found["accuracy_in_mt-bench-easy"] == 0.75
  table = tables["rewardbench"]
  assert table["subsets"]["mt-bench-easy"]["value"] == 0.5
  assert table["subsets"]["mt-bench-easy"]["n"] == 2
  assert len(table["missing"]) == len(rewardbench.SUBSETS) - 3
  assert table["fewer"]["mt-bench-easy"] == (2, 28)


def test_rewardbench_2_of_a_small_file(caplog):
  """Its rows have lists; three of each side in it are not of RM-Bench."""
  rows = [
    row([3.0], [1.0, 2.0, 0.0], "Math", listed=True),
    row([1.0], [1.0, 0.0, 0.0], "Math", listed=True),
    row([1.0], [0.0], "Math"),
    row([2.0], [0.0, 1.0, 0.0], "Ties", listed=True, id="ref:5"),
    row([3.0, 2.0, 3.0], [0.0, 1.0, 0.0], "Ties", listed=True, id="tied:5"),
    row([3.0, 2.0], [0.0], "Ties", listed=True, id="tied:6"),
  ]
  found, tables = candidates.quality(rows)
  assert found["rewardbench2_math"] == 0.75
  # Both right; 1 is the gap of both and the difference of right answers.
  assert found["rewardbench2_ties"] == pytest.approx(0.6)
  assert "rewardbench2" not in found and "rm_bench" not in found
  table = tables["rewardbench2"]
  assert table["n"] == {"Math": 2, "Ties": 1}
  assert table["missing"] == ["Factuality", "Precise IF", "Safety", "Focus"]
  assert table["scores"]["rewardbench2_math"]["value"] == 0.75
  assert "1 of 3 rows of Ties are left out" in caplog.text
  assert found["accuracy_in_Math"] == pytest.approx((1 + 2.5 / 3 + 1) / 3)


def test_rm_bench_of_a_small_file():
  likes_style = row([1, 2, 3], [1, 2, 3], "chat", listed=True)
  knows = row([4, 5, 6], [1, 2, 3], "safety-refuse", listed=True)
  found, tables = candidates.quality([likes_style, knows])
  assert found["rm_bench_easy"] == 1.0
  assert found["rm_bench_normal"] == found["rm_bench_hard"] == 0.5
  assert found["rm_bench"] == pytest.approx(2 / 3)
  assert found["rm_bench_chat"] == pytest.approx(1 / 3)
  assert found["rm_bench_safety"] == 1.0
  table = tables["rm_bench"]
  assert table["domains"]["chat"]["matrix"] == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
  assert set(table["domains"]) == {"chat", "safety", "safety-refuse"}
  assert table["missing"] == ["math", "code"]
  assert found["accuracy_in_chat"] == pytest.approx((3 + 1.5) / 9)


@pytest.mark.parametrize(
  "scored, more",
  [
    (
      row([1.0], [2.0], id=7, a="b"),
      {"score_chosen": 1.0, "score_rejected": 2.0},
    ),
    (
      row([1.0], [2.0, 3.0], listed=True, id=7),
      {"score_chosen": [1.0], "score_rejected": [2.0, 3.0]},
    ),
    (single(1.0, id=7, prompt="x"), {"score": 1.0}),
  ],
)  # fmt: skip
def test_a_row_is_written_as_it_was_with_its_scores(scored, more):
  assert candidates.written(scored, "score") == scored.record.fields | more


def test_what_is_written_of_ensembles_and_rows_without_a_name():
  scored = single(1.0, prompt="x")._replace(members=[[0.5, 1.5]])
  assert candidates.written(scored, "r") == {
    "id": "rows.jsonl:2", "prompt": "x", "r": 1.0, "r_members": [0.5, 1.5],
  }  # fmt: skip
  scored = single(1.0, id=None, prompt="x")
  assert candidates.written(scored, "r")["id"] == "rows.jsonl:2"
  scored = row([1.0], [2.0], a=1)._replace(members=[[0.0], [3.0]])
  found = candidates.written(scored, "r")
  assert found["r_chosen_members"] == [0.0]
  assert found["r_rejected_members"] == [3.0]


def test_a_name_that_a_row_has_already_is_refused():
  rows = [single(1.0, prompt="x").record, single(1.0, score=3).record]
  with pytest.raises(
    ValueError, match=r"rows.jsonl:2: field 'score'.*--config"
  ):
    candidates.check_free(rows, "score")
  candidates.check_free(rows, "reward_model")


def test_an_evaluation_gives_the_accuracy_of_each_subset():
  rows = [
    {"chosen": 1.0, "rejected": 0.0, "subset": "easy"},
    {"chosen": 1.0, "rejected": 0.0, "subset": "easy"},
    {"chosen": 0.0, "rejected": 1.0, "subset": "hard/1"},
    {"chosen": 1.0, "rejected": 0.0},
  ]
  found = reward_model.quality(rows)
  assert found["accuracy"] == 0.75
  assert found["accuracy_in_easy"] == 1.0
  assert found["accuracy_in_hard_1"] == 0.0
  low, high = classification.wilson_interval(2, 2)
  assert found["accuracy_in_easy_low"] == pytest.approx(low)
  assert found["accuracy_in_easy_high"] == pytest.approx(high)
  many = [row | {"subset": str(n)} for n in range(101) for row in rows[:1]]
  assert not any("_in_" in key for key in reward_model.quality(many))


def test_subsets_in_any_script_are_told_apart():
  """Both evaluations; "a b" and "a_b" would have one name."""
  names = ("\u6570\u5b66", "\u5b89\u5168", "a b", "a_b")
  scores = ([1.0], [0.0]), ([0.0], [1.0])
  rows = [row(*scores[i % 2], name) for i, name in enumerate(names)]
  listed = [
    {"chosen": x[0][0], "rejected": x[1][0], "subset": name}
    for x, name in zip(scores * 2, names, strict=True)
  ]
  expected = dict(zip((*names[:2], "a_b", "a_b_2"), (1, 0, 1, 0), strict=True))
  for found in (candidates.quality(rows)[0], reward_model.quality(listed)):
    assert {
      key.removeprefix("accuracy_in_"): value
      for key, value in found.items()
      if key.startswith("accuracy_in_") and not key.endswith(("_low", "_high"))
    } == expected


def test_three_responses_a_side_alone_are_not_rm_bench():
  for subset in ("", "chatter", "mathematics", "mine"):
    mine = row([4, 5, 6], [1, 2, 3], subset, listed=True)
    found, tables = candidates.quality([mine])
    assert not tables and not any(key.startswith("rm_bench") for key in found)


def test_a_label_that_is_no_number_has_one_beside_it():
  for fields, more in (
    ({"label": True}, {"score_label": 1.0}),
    ({"label": "yes"}, {"score_label": 1.0}),
    ({"thumb": 1}, {"score_label": 1.0}),
    ({"label": 1}, {}),
  ):
    scored = single(0.5, label=1.0, id=7)
    scored.record.fields.update(fields)
    found = candidates.written(scored, "score")
    assert found == {"id": 7, **fields, "score": 0.5, **more}


@pytest.mark.parametrize("bad", [np.nan, np.inf, [0.0, np.nan]])
def test_scores_that_cannot_be_compared_name_their_row(bad):
  for scores in ({"score": bad}, {"chosen": 1.0, "rejected": bad}):
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: the reward model's"):
      reward_model.require_finite(scores, "rows.jsonl:3")
  reward_model.require_finite({"chosen": 1.0, "rejected": [0.0]}, "a")
