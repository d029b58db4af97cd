"""Binary scores against hand computation and slow loops."""

import math

import numpy as np
import pytest

from perl_jax import classification


def slow_auroc(scores, labels):
  """Counts pairs one by one."""
  wins = pairs = 0
  for s, y in zip(scores, labels, strict=True):
    for t, z in zip(scores, labels, strict=True):
      if y == 1 and z == 0:
        pairs += 1
        wins += 1.0 if s > t else 0.5 if s == t else 0.0
  return wins / pairs


def slow_ece(probabilities, outcomes, bins=15):
  total = 0.0
  for b in range(bins):
    low, high = b / bins, (b + 1) / bins
    rows = [
      (p, y)
      for p, y in zip(probabilities, outcomes, strict=True)
      if low <= p < high or (b == bins - 1 and p == 1)
    ]
    if rows:
      gap = np.mean([y for _, y in rows]) - np.mean([p for p, _ in rows])
      total += len(rows) / len(probabilities) * abs(gap)
  return total


def skewed(n=300, seed=0):
  generator = np.random.default_rng(seed)
  labels = (generator.random(n) < 0.2).astype(float)
  scores = np.round(generator.normal(labels * 1.3 - 1, 1.0), 1)  # with ties
  return scores, labels


def test_binary_metrics_by_hand():
  # Right: 2.0 -> 1, -1.0 -> 0; wrong: 0.5 -> 1 (is 0), -3.0 -> 0 (is 1).
  metrics = classification.binary_metrics([2.0, 0.5, -1.0, -3.0], [1, 0, 0, 1])
  assert metrics["accuracy"] == 0.5
  assert metrics["balanced_accuracy"] == 0.5
  assert metrics["auroc"] == 0.5  # wins: 2.0 over both zeros; -3.0 over none
  assert metrics["base_rate"] == 0.5
  assert metrics["n"] == 4
  expected = [
    math.log(1 + math.exp(-2.0)),
    math.log(1 + math.exp(0.5)),
    math.log(1 + math.exp(-1.0)),
    math.log(1 + math.exp(3.0)),
  ]
  assert metrics["log_loss"] == pytest.approx(np.mean(expected), rel=1e-12)
  # Each probability is alone in its bin.
  p = [1 / (1 + math.exp(-s)) for s in (2.0, 0.5, -1.0, -3.0)]
  gaps = [1 - p[0], p[1], p[2], 1 - p[3]]
  assert metrics["calibration_error"] == pytest.approx(np.mean(gaps))


def test_binary_metrics_against_slow_loops():
  scores, labels = skewed()
  metrics = classification.binary_metrics(scores, labels)
  right = [(s > 0) == (y == 1) for s, y in zip(scores, labels, strict=True)]
  assert metrics["accuracy"] == pytest.approx(np.mean(right), rel=1e-12)
  recalls = [
    np.mean([r for r, y in zip(right, labels, strict=True) if y == label])
    for label in (0, 1)
  ]
  assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
  assert metrics["balanced_accuracy"] != pytest.approx(metrics["accuracy"])
  assert metrics["auroc"] == pytest.approx(slow_auroc(scores, labels))
  probabilities = 1 / (1 + np.exp(-scores))
  assert metrics["calibration_error"] == pytest.approx(
    slow_ece(probabilities, labels)
  )


def test_log_loss_of_extreme_scores_is_finite():
  metrics = classification.binary_metrics([1000.0, -1000.0], [0, 1])
  assert metrics["log_loss"] == 1000.0
  assert metrics["calibration_error"] == 1.0
  assert classification.binary_metrics([1e3, -1e3], [1, 0])["log_loss"] == 0.0


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_class_is_nan_without_a_warning(label):
  metrics = classification.binary_metrics([0.3, -0.2, 1.0], [label] * 3)
  assert math.isnan(metrics["auroc"])
  assert math.isnan(metrics["balanced_accuracy"])
  assert metrics["base_rate"] == label
  assert math.isfinite(metrics["log_loss"])


def test_a_score_of_zero_predicts_label_0():
  assert classification.binary_metrics([0.0, 0.0], [0, 0])["accuracy"] == 1.0
  assert classification.binary_metrics([0.0, 0.0], [1, 1])["accuracy"] == 0.0


def test_wilson_interval_solves_its_quadratic():
  """Both ends satisfy |p - x| = z sqrt(x (1 - x) / n), the definition."""
  for successes, n in [(1, 7), (81, 263), (40.5, 50), (499, 500)]:
    p = successes / n
    for end in classification.wilson_interval(successes, n):
      assert abs(p - end) == pytest.approx(
        1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-9
      )


def test_wilson_interval_published_and_extreme():
  # Newcombe 1998, Stat. Med. 17, table I, method 3: 81/263, 15/148, 0/20, 1/29.
  for successes, n, low, high in [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ]:
    interval = classification.wilson_interval(successes, n)
    assert interval == pytest.approx((low, high), abs=5e-5)
  assert classification.wilson_interval(20, 20)[1] == 1.0


def test_wilson_interval_refuses_nonsense():
  with pytest.raises(ValueError, match="successes=5, n=4"):
    classification.wilson_interval(5, 4)
  with pytest.raises(ValueError, match="n=0"):
    classification.wilson_interval(0, 0)


def test_preference_metrics_by_hand():
  # A win by 2, a tie, a loss by 1.
  metrics = classification.preference_metrics([2.0, 1.0, 0.0], [0.0, 1.0, 1.0])
  assert metrics["accuracy"] == pytest.approx(0.5)
  assert metrics["margin"] == pytest.approx(1 / 3)
  assert metrics["n"] == 3
  assert metrics["log_loss"] == pytest.approx(
    (math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.e)) / 3
  )
  # Pooled: 2 beats 0, 1, 1; 1 beats 0 and ties twice; 0 ties once.
  assert metrics["auroc"] == pytest.approx((3 + 2 + 0.5) / 9)
  two, one = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
  assert metrics["calibration_error"] == pytest.approx(
    (abs(1 - two) + abs(0.5 - 0.5) + abs(0 - one)) / 3
  )
  interval = (metrics["accuracy_low"], metrics["accuracy_high"])
  assert interval == classification.wilson_interval(1.5, 3)


def test_preference_calibration_is_small_for_a_calibrated_model():
  generator = np.random.default_rng(3)
  difference = generator.normal(0, 2, 20_000)
  first_wins = generator.random(difference.size) < 1 / (1 + np.exp(-difference))
  margins = np.where(first_wins, difference, -difference)
  calibrated = classification.preference_metrics(margins, 0 * margins)
  overconfident = classification.preference_metrics(4 * margins, 0 * margins)
  assert calibrated["calibration_error"] < 0.01
  assert overconfident["calibration_error"] > 0.1


def test_calibration_bins_counts_and_empty_bins():
  bins = classification.calibration_bins([0.0, 0.05, 1.0], [0, 1, 1], bins=10)
  assert bins.counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
  assert bins.predicted[0] == pytest.approx(0.025)
  assert bins.observed[0] == 0.5
  assert np.isnan(bins.predicted[1:-1]).all()
  assert bins.observed[-1] == 1.0


def slow_bootstrap(a, b, labels, groups, samples, seed):
  """Repeats rows of drawn groups and lets a loop count the pairs."""
  names = sorted(set(groups))
  generator = np.random.default_rng(seed)
  differences = []
  for _ in range(samples):
    rows = []
    for g in generator.integers(len(names), size=len(names)):
      rows += [i for i, name in enumerate(groups) if name == names[g]]
    differences.append(
      slow_auroc(a[rows], labels[rows]) - slow_auroc(b[rows], labels[rows])
    )
  return differences


def test_paired_bootstrap_against_a_slow_loop():
  a, labels = skewed(60, seed=1)
  b = np.round(a + np.random.default_rng(2).normal(0, 1, a.size), 1)
  groups = [f"group {i % 17}" for i in range(a.size)]
  result = classification.paired_bootstrap_auroc(
    a, b, labels, groups, samples=25, seed=7
  )
  expected = slow_bootstrap(a, b, labels, groups, 25, 7)
  assert result.mean == pytest.approx(np.mean(expected), abs=1e-12)
  assert result.low == pytest.approx(np.quantile(expected, 0.025), abs=1e-12)
  assert result.high == pytest.approx(np.quantile(expected, 0.975), abs=1e-12)
  assert result.auroc_a == pytest.approx(slow_auroc(a, labels))
  assert result.difference == pytest.approx(
    slow_auroc(a, labels) - slow_auroc(b, labels)
  )
  assert result.undefined == 0


def test_paired_bootstrap_of_equal_scores_is_zero():
  scores, labels = skewed(80)
  result = classification.paired_bootstrap_auroc(
    scores, 2 * scores + 1, labels, np.arange(80), samples=20
  )
  assert (result.mean, result.low, result.high) == (0.0, 0.0, 0.0)


def test_paired_bootstrap_is_wider_over_groups_than_over_rows():
  generator = np.random.default_rng(0)
  group_labels = generator.integers(0, 2, 30)
  noise = generator.normal(0, 1, (2, 30))
  labels = np.repeat(group_labels, 20).astype(float)
  a = np.repeat(group_labels + noise[0], 20)
  b = np.repeat(group_labels + noise[1], 20)
  groups = np.repeat(np.arange(30), 20)
  whole = classification.paired_bootstrap_auroc(a, b, labels, groups, 200)
  rows = classification.paired_bootstrap_auroc(
    a, b, labels, np.arange(labels.size), 200
  )
  assert whole.high - whole.low > 2 * (rows.high - rows.low)


def test_paired_bootstrap_counts_undefined_resamples():
  result = classification.paired_bootstrap_auroc(
    [1.0, 0.0], [0.0, 1.0], [1, 0], ["x", "y"], samples=40, seed=0
  )
  assert 0 < result.undefined < 40
  assert result.mean == 1.0
  one_class = classification.paired_bootstrap_auroc(
    [1.0, 0.0], [0.0, 1.0], [1, 1], ["x", "y"], samples=5
  )
  assert one_class.undefined == 5
  assert math.isnan(one_class.low)
  assert math.isnan(one_class.mean)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: classification.binary_metrics([], []), "non-empty"),
    (
      lambda: classification.binary_metrics([0.0, math.nan], [0, 1]),
      r"scores\[1\] is nan",
    ),
    (
      lambda: classification.binary_metrics([0.0, 1.0], [0, 2]),
      r"labels\[1\] is 2.0, not 0 or 1",
    ),
    (
      lambda: classification.binary_metrics([0.0, 1.0], [0]),
      "2 scores need labels",
    ),
    (
      lambda: classification.preference_metrics([0.0, 1.0], [0.0]),
      "2 chosen_scores but 1 rejected_scores",
    ),
    (
      lambda: classification.paired_bootstrap_auroc(
        [0.0], [1.0], [1], list("ab")
      ),
      "one entry a row",
    ),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
