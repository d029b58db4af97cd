"""RewardBench, 2 and RM-Bench: numbers of files of their shapes, by loops."""

import numpy as np
import pytest

from perl_jax.tasks.evaluation import (
  intervals,
  rewardbench,
  rewardbench2,
  rm_bench,
)


def test_a_section_is_weighted_by_the_sizes_of_rewardbench():
  """By hand: (100 * 1 + 95 * 0.5) / 195, whatever the number of pairs here."""
  right = {"alpacaeval-easy": [1, 1, 1], "alpacaeval-length": [1, 0]}
  found = rewardbench.sections(right)
  assert set(found) == {"rewardbench_chat"}
  assert found["rewardbench_chat"].value == pytest.approx(147.5 / 195)


def test_mathematics_and_code_have_half_of_reasoning_each():
  code = ("cpp", "go", "java", "js", "python", "rust")
  right = {"math-prm": [1, 1, 0, 0, 0]}
  right |= {f"hep-{name}": [1] for name in code}
  found = rewardbench.sections(right)["rewardbench_reasoning"]
  assert found.value == pytest.approx((0.4 + 1.0) / 2)


def test_overall_is_the_mean_of_the_four_sections():
  rng = np.random.default_rng(0)
  right = {
    name: rng.integers(2, size=rng.integers(1, 9))
    for name in rewardbench.SUBSETS
  }
  found = rewardbench.sections(right)
  scores = []
  for section, weights in rewardbench.SECTIONS.items():
    hits = total = 0.0
    for name, weight in weights.items():
      hits += weight * sum(right[name]) / len(right[name])
      total += weight
    scores.append(hits / total)
    assert found[f"rewardbench_{section}"].value == pytest.approx(hits / total)
  assert found["rewardbench"].value == pytest.approx(sum(scores) / 4)
  assert rewardbench.missing(right) == []
  for estimate in found.values():
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_without_a_section_there_is_no_score_overall():
  right = {"mt-bench-easy": [1], "mt-bench-hard": [0], "math-prm": [1]}
  assert "rewardbench" not in rewardbench.sections(right)
  missing = rewardbench.missing(right)
  assert "donotanswer" in missing and "math-prm" not in missing
  assert rewardbench.sections({"other": [1]}) == {}


def test_the_sizes_are_those_of_the_data():
  """2,985 pairs, of which 447 are of PRM-Math; table 1 of the paper."""
  weights = [w for s in rewardbench.SECTIONS.values() for w in s.values()]
  assert sum(weights) - 984 + 447 == 2985
  assert len(weights) == 23
  sizes = [sum(s.values()) for s in rewardbench.SECTIONS.values()]
  assert sizes == [358, 456, 740, 1968]


def test_subsets_of_which_some_pairs_are_missing():
  right = {"math-prm": [1] * 447, "hep-go": [1] * 12, "mt-bench-easy": [1] * 28}
  assert rewardbench.fewer(right) == {"hep-go": (12, 164)}


# RewardBench 2.


@pytest.mark.parametrize(
  "chosen, rejected, worth",
  [
    ([3.0], [1.0, 2.0, 0.0], 1.0),
    ([3.0], [3.0, 2.0, 0.0], 1 / 2),
    ([3.0], [3.0, 3.0, 0.0], 1 / 3),
    ([1.0], [1.0, 1.0, 1.0], 1 / 4),
    ([1.0], [2.0, 0.0, 0.0], 0.0),
  ],
)
def test_the_best_of_four_and_what_shares_the_highest_score(
  chosen, rejected, worth
):
  assert rewardbench2.worth(chosen, rejected) == pytest.approx(worth)


# Of each prompt: right and wrong answers of the row with one right answer, and
# of that with several.
SEVERAL = {
  "7": (([2.0], [1.0, 0.0]), ([3.0, 2.5], [1.0])),
  "12": (([0.0], [1.0]), ([2.0, 1.0], [0.5])),
  "3": (([2.0], [0.0]), ([1.0, 1.0], [0.0, -1.0])),
  "4": (([1.0], [1.0]), ([1.0, 1.0], [1.0])),
}


def rows_of_ties():
  rows = [(f"ref:{n}", *ref) for n, (ref, _) in SEVERAL.items()]
  rows += [(f"tied:{n}", *tied) for n, (_, tied) in SEVERAL.items()][::-1]
  # These are beside no other row, and one is of another kind.
  return [
    *rows,
    ("ref:9", [1.0], [0.0]),
    ("x:7", [0.0], [1.0]),
    ("7", [1], [0]),
  ]


def test_the_score_of_ties_by_hand():
  """Gaps of "ref": 1, -1, 2, 0; of "tied": 1.5, 0.5, 1, 0.

  The right answers of "tied" differ by 0.5, 1, 0, 0.
  Where that is 0 the margin is 1 for a gap, and 0 for none.
  """
  of_ties = rewardbench2.ties(rows_of_ties())
  assert of_ties.shape == (4, 5)
  found = rewardbench2.results({}, of_ties)
  assert set(found) == {"rewardbench2_ties"}
  margins = (np.tanh(1 / 0.5 - 1) + np.tanh(-1 / 1 - 1) + 1 + 0) / 4
  expected = 0.3 * 2 / 4 + 0.3 * 3 / 4 + 0.2 * 2 / 4 + 0.2 * 2 / 4
  expected += 0.01 * margins
  estimate = found["rewardbench2_ties"]
  assert estimate.value == pytest.approx(expected)
  assert estimate.low < estimate.value < estimate.high


def test_rewardbench_2_is_the_mean_of_its_subsets():
  rng = np.random.default_rng(0)
  names = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
  worths = {name: rng.integers(2, size=rng.integers(2, 9)) for name in names}
  of_ties = rewardbench2.ties(rows_of_ties())
  found = rewardbench2.results(worths, of_ties)
  total = found["rewardbench2_ties"].value
  for name, values in worths.items():
    key = f"rewardbench2_{name.lower().replace(' ', '_')}"
    mean = sum(values) / len(values)
    assert found[key].value == pytest.approx(mean)
    total += mean
  assert found["rewardbench2"].value == pytest.approx(total / 6)
  without = rewardbench2.results(worths, of_ties[:0])
  assert "rewardbench2" not in without and len(without) == 5
  assert rewardbench2.results({}, of_ties[:0]) == {}


# RM-Bench.


def scores(seed, count):
  """Scores of `count` rows with three chosen and three rejected responses."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 5, (count, 2, 3)).astype(float)  # some are equal


def by_hand(rows):
  """(matrix, easy, normal, hard) of rows of scores, by loops."""
  matrix = [[0.0] * 3 for _ in range(3)]
  for chosen, rejected in rows:
    for i in range(3):
      for j in range(3):
        matrix[i][j] += (chosen[i] > rejected[j]) / len(rows)
  easy = (matrix[1][0] + matrix[2][0] + matrix[2][1]) / 3
  normal = (matrix[0][0] + matrix[1][1] + matrix[2][2]) / 3
  hard = (matrix[0][1] + matrix[0][2] + matrix[1][2]) / 3
  return matrix, easy, normal, hard


def test_the_style_matrix_and_its_triangles():
  domains = {
    "chat": scores(0, 5),
    "math": scores(1, 3),
    "code": scores(2, 7),
    "safety-refuse": scores(3, 4),
    "safety-response": scores(4, 2),
  }
  found = rm_bench.results(
    {
      name: [rm_bench.comparisons(*row) for row in rows]
      for name, rows in domains.items()
    }
  )
  # Both parts of safety are one domain, a row a row.
  joined = {name: domains[name] for name in ("chat", "math", "code")}
  joined["safety"] = np.concatenate(
    [domains["safety-refuse"], domains["safety-response"]]
  )
  expected = {name: by_hand(rows) for name, rows in joined.items()}
  for name, rows in (joined | domains).items():
    matrix, *levels = by_hand(rows)
    mine = found["domains"][name]
    np.testing.assert_allclose(mine["matrix"], matrix)
    assert mine["n"] == len(rows)
    for level, value in zip(rm_bench.LEVELS, levels, strict=True):
      assert mine[level].value == pytest.approx(value)
    assert mine["average"].value == pytest.approx(sum(levels) / 3)
  for place, level in enumerate(rm_bench.LEVELS, 1):
    mean = sum(values[place] for values in expected.values()) / 4
    assert found["overall"][level].value == pytest.approx(mean)
  average = np.mean([np.mean(values[1:]) for values in expected.values()])
  assert found["overall"]["average"].value == pytest.approx(average)
  np.testing.assert_allclose(
    found["matrix"], np.mean([v[0] for v in expected.values()], axis=0)
  )


def test_a_model_that_likes_fancy_styles_is_easy_and_not_hard():
  row = rm_bench.comparisons([1, 2, 3], [1, 2, 3])
  found = rm_bench.results({"chat": [row]})["overall"]
  assert [found[level].value for level in rm_bench.LEVELS] == [1.0, 0.0, 0.0]


def test_an_interval_covers_what_it_should():
  """Of 200 data sets with a mean of 0.7, some 95 % have it in theirs."""
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(200):
    rows = (rng.random((60, 1)) < 0.7).astype(float)
    found = intervals.resampled(
      {"a": rows}, lambda m: {"x": float(m["a"][0])}, samples=200
    )["x"]
    covered += found.low <= 0.7 <= found.high
  assert 180 <= covered <= 199


def test_a_stratum_is_resampled_within_itself():
  """Two strata without any spread have a mean without any."""
  strata = {"a": np.ones((9, 1)), "b": np.zeros((3, 1))}
  found = intervals.resampled(
    strata, lambda m: {"x": float(m["a"][0] + m["b"][0]) / 2}
  )
  assert found["x"] == (0.5, 0.5, 0.5)
  assert found["x"].named("x") == {"x": 0.5, "x_low": 0.5, "x_high": 0.5}
