"""Metrics of binary scores: accuracy, AUROC, log loss, calibration, intervals.

A reward model is evaluated on skewed labels, where accuracy alone is
misleading; it comes with an interval, beside the area under the ROC curve, the
log loss and the calibration error. Scores are logits throughout. Host code:
NumPy arrays in, Python floats out. A metric that the data do not define (AUROC
of a single class) is nan, without a warning.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from sklearn import metrics as sklearn_metrics

Numbers = Sequence[float] | np.ndarray

CALIBRATION_BINS = 15


class CalibrationBins(NamedTuple):
  """Predicted and observed frequency in bins of equal width.

  Attributes:
    counts: Number of predictions in each bin, `[bins]`.
    predicted: Mean predicted probability, `[bins]`; nan in an empty bin.
    observed: Mean outcome, `[bins]`; nan in an empty bin.
  """

  counts: np.ndarray
  predicted: np.ndarray
  observed: np.ndarray

  def error(self) -> float:
    """ECE = sum_b n_b / n * |observed_b - predicted_b|; empty bins count 0."""
    gaps = np.nan_to_num(np.abs(self.observed - self.predicted))
    return float(np.sum(self.counts * gaps) / np.sum(self.counts))


class BootstrapDifference(NamedTuple):
  """AUROC of a minus AUROC of b, with a 95% percentile interval.

  Attributes:
    auroc_a: AUROC of a on the given rows.
    auroc_b: AUROC of b on the given rows.
    difference: auroc_a - auroc_b.
    mean: Mean difference over the resamples.
    low: 2.5% quantile of the difference over the resamples.
    high: 97.5% quantile.
    undefined: Number of resamples left out because they held one class only.
  """

  auroc_a: float
  auroc_b: float
  difference: float
  mean: float
  low: float
  high: float
  undefined: int


def wilson_interval(
  successes: float, n: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Score interval of a proportion; sound near 0 and 1 and for small n.

  centre = (p + z^2 / 2n) / (1 + z^2 / n)
  half width = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

  Args:
    successes: Number of successes; halves are allowed (ties).
    n: Number of trials, at least 1.
    confidence: Coverage; z is its two-sided normal quantile.

  Returns:
    (low, high), both in [0, 1].

  Reference: Wilson 1927, J. Am. Stat. Assoc. 22, p. 209.
  """
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(
      f"need 0 <= successes <= n and n >= 1, got successes={successes}, n={n}"
    )
  z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
  p = successes / n
  centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  return max(0.0, centre - half), min(1.0, centre + half)


def calibration_bins(
  probabilities: Numbers, outcomes: Numbers, bins: int = CALIBRATION_BINS
) -> CalibrationBins:
  """Groups predictions by probability; bin b holds [b / bins, (b + 1) / bins).

  The last bin also holds 1. An empty bin has count 0 and nan for the rest.

  Args:
    probabilities: Predicted probability of the outcome, `[n]`, in [0, 1].
    outcomes: What happened, `[n]`, in [0, 1] (1/2 for a tie).
    bins: Number of bins of equal width over [0, 1].

  Reference: Guo et al. 2017, arXiv:1706.04599, section 2.
  """
  probabilities = np.asarray(probabilities, np.float64)
  outcomes = np.asarray(outcomes, np.float64)
  index = np.minimum((probabilities * bins).astype(int), bins - 1)
  counts = np.bincount(index, minlength=bins)
  filled = np.maximum(counts, 1)
  predicted = np.bincount(index, probabilities, minlength=bins) / filled
  observed = np.bincount(index, outcomes, minlength=bins) / filled
  empty = counts == 0
  return CalibrationBins(
    counts,
    np.where(empty, np.nan, predicted),
    np.where(empty, np.nan, observed),
  )


def preference_confidence(
  chosen_scores: Numbers, rejected_scores: Numbers
) -> tuple[np.ndarray, np.ndarray]:
  """Confidence of a reward model in the response it favours, and the outcome.

  With p = sigmoid(chosen - rejected), confidence = max(p, 1 - p) and the
  outcome is 1 where p > 1/2, 0 where p < 1/2 and 1/2 for a tie. (The outcome
  of p itself is always 1, by the order in which pairs are stored; calibration
  has to be asked of the favoured response.)

  Returns:
    (confidence, outcome), `[n]` each.
  """
  margins = np.asarray(chosen_scores, np.float64) - np.asarray(
    rejected_scores, np.float64
  )
  return special.expit(np.abs(margins)), 0.5 + 0.5 * np.sign(margins)


def binary_metrics(scores: Numbers, labels: Numbers) -> dict[str, float]:
  """Metrics of logits against 0/1 labels; a score above 0 predicts 1.

  Args:
    scores: Logits of label 1, `[n]`, finite.
    labels: 0 or 1, `[n]`.

  Returns:
    `accuracy` with its 95% Wilson interval `accuracy_low`, `accuracy_high`;
    `balanced_accuracy` = mean of the two recalls; `auroc`; `log_loss` =
    mean(log(1 + e^s) - y s) in nats; `calibration_error` = sum_b n_b / n *
    |mean label - mean sigmoid(s)| over 15 equal-width bins b of sigmoid(s);
    `base_rate` = share of label 1; `n`. With a single class
    `balanced_accuracy` and `auroc` are nan.
  """
  scores = _finite("scores", scores)
  labels = _labels(labels, scores.size)
  right = (scores > 0) == (labels == 1)
  low, high = wilson_interval(int(right.sum()), right.size)
  both = 0 < labels.sum() < labels.size
  return {
    "accuracy": float(right.mean()),
    "accuracy_low": low,
    "accuracy_high": high,
    "balanced_accuracy": float(
      (right[labels == 1].mean() + right[labels == 0].mean()) / 2
    )
    if both
    else math.nan,
    "auroc": auroc(scores, labels),
    "log_loss": float(np.mean(np.logaddexp(0, scores) - labels * scores)),
    "calibration_error": calibration_bins(
      special.expit(scores), labels
    ).error(),
    "base_rate": float(labels.mean()),
    "n": scores.size,
  }


def preference_metrics(
  chosen_scores: Numbers, rejected_scores: Numbers
) -> dict[str, float]:
  """Metrics of the scores of preference pairs.

  Args:
    chosen_scores: Scores of the preferred responses, `[n]`, finite.
    rejected_scores: Scores of the other responses to the same prompts, `[n]`.

  Returns:
    `accuracy` = share of pairs with chosen > rejected, a tie counts 1/2, with
    its 95% Wilson interval `accuracy_low`, `accuracy_high`; `auroc` of all
    2n scores pooled, chosen against rejected, whatever the prompt;
    `log_loss` = mean(log(1 + e^-(chosen - rejected))), the Bradley-Terry
    loss in nats per pair; `calibration_error` = sum_b n_b / n * |mean outcome
    - mean confidence| over 15 equal-width bins b of the confidence, see
    `preference_confidence`; `margin` = mean(chosen - rejected); `n` pairs.
  """
  chosen = _finite("chosen_scores", chosen_scores)
  rejected = _finite("rejected_scores", rejected_scores)
  if chosen.size != rejected.size:
    raise ValueError(
      f"{chosen.size} chosen_scores but {rejected.size} rejected_scores: a "
      "pair has one of each"
    )
  margins = chosen - rejected
  confidence, outcome = preference_confidence(chosen, rejected)
  low, high = wilson_interval(float(outcome.sum()), outcome.size)
  return {
    "accuracy": float(outcome.mean()),
    "accuracy_low": low,
    "accuracy_high": high,
    "auroc": auroc(
      np.concatenate([chosen, rejected]),
      np.repeat([1.0, 0.0], chosen.size),
    ),
    "log_loss": float(np.mean(np.logaddexp(0, -margins))),
    "calibration_error": calibration_bins(confidence, outcome).error(),
    "margin": float(margins.mean()),
    "n": chosen.size,
  }


def auroc(scores: Numbers, labels: Numbers) -> float:
  """P(score of a 1 > score of a 0), ties 1/2; nan if there is one class."""
  labels = np.asarray(labels)
  if labels.min() == labels.max():
    return math.nan
  return float(sklearn_metrics.roc_auc_score(labels, scores))


def paired_bootstrap_auroc(
  scores_a: Numbers,
  scores_b: Numbers,
  labels: Numbers,
  groups: Sequence[object] | np.ndarray,
  samples: int = 1000,
  seed: int = 0,
) -> BootstrapDifference:
  """Difference of two AUROCs on the same rows, with a bootstrap over groups.

  Each resample draws as many groups as there are, with replacement, takes all
  rows of every drawn group (twice if it is drawn twice) and compares both
  scores on those same rows. Rows of one conversation share their label, so
  resampling single rows would give intervals that are far too narrow.

  Args:
    scores_a: Scores of the first model, `[n]`; only their order matters.
    scores_b: Scores of the second model on the same rows, `[n]`.
    labels: 0 or 1, `[n]`.
    groups: Group of each row, `[n]`, any sortable values.
    samples: Number of resamples.
    seed: Seed of the resampling; the same seed gives the same interval.
  """
  scores_a = _finite("scores_a", scores_a)
  scores_b = _finite("scores_b", scores_b)
  labels = _labels(labels, scores_a.size)
  names, group = np.unique(np.asarray(groups), return_inverse=True)
  if not scores_a.size == scores_b.size == group.size:
    raise ValueError(
      "scores_a, scores_b and groups must have one entry a row, got "
      f"{scores_a.size}, {scores_b.size} and {group.size}"
    )
  if samples < 1:
    raise ValueError(f"samples={samples} must be at least 1")
  ranks_a = np.unique(scores_a, return_inverse=True)[1]
  ranks_b = np.unique(scores_b, return_inverse=True)[1]
  generator = np.random.default_rng(seed)
  differences = np.full(samples, np.nan)
  for i in range(samples):
    drawn = generator.integers(names.size, size=names.size)
    weights = np.bincount(drawn, minlength=names.size)[group]
    differences[i] = _weighted_auroc(ranks_a, labels, weights)
    differences[i] -= _weighted_auroc(ranks_b, labels, weights)
  defined = differences[~np.isnan(differences)]
  if not defined.size:
    defined = np.array([math.nan])
  a, b = auroc(scores_a, labels), auroc(scores_b, labels)
  return BootstrapDifference(
    auroc_a=a,
    auroc_b=b,
    difference=a - b,
    mean=float(defined.mean()),
    low=float(np.quantile(defined, 0.025)),
    high=float(np.quantile(defined, 0.975)),
    undefined=int(np.isnan(differences).sum()),
  )


def _weighted_auroc(
  ranks: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> float:
  """AUROC of rows that occur `weights` times; ranks are dense, from 0."""
  ones = np.bincount(ranks, weights * labels)
  zeros = np.bincount(ranks, weights * (1 - labels))
  pairs = ones.sum() * zeros.sum()
  if pairs == 0:
    return math.nan
  zeros_below = np.cumsum(zeros) - zeros
  return float(np.sum(ones * (zeros_below + zeros / 2)) / pairs)


def _finite(name: str, values: Numbers) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim != 1 or array.size == 0:
    raise ValueError(
      f"{name} must be a non-empty list of numbers, got shape {array.shape}"
    )
  bad = np.flatnonzero(~np.isfinite(array))
  if bad.size:
    raise ValueError(
      f"{name}[{bad[0]}] is {array[bad[0]]}; {bad.size} of {array.size} are "
      "not finite: the model that made them has diverged"
    )
  return array


def _labels(labels: Numbers, n: int) -> np.ndarray:
  array = np.asarray(labels, np.float64)
  if array.shape != (n,):
    raise ValueError(f"{n} scores need labels [{n}], got {array.shape}")
  bad = np.flatnonzero((array != 0) & (array != 1))
  if bad.size:
    raise ValueError(f"labels[{bad[0]}] is {array[bad[0]]}, not 0 or 1")
  return array
