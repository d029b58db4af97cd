"""Figures of a reward model: ROC curve, calibration, distribution of scores."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import special
from sklearn import metrics as sklearn_metrics

from perl_jax import classification
from perl_jax.reporting import numbers, svg

Rows = Sequence[Mapping[str, object]]


def reward_model_figures(scores: Rows) -> list[svg.Figure]:
  """ROC curve, reliability diagram and histogram of the scores.

  Args:
    scores: Lines of scores.jsonl: `{"score", "label"}` of responses with label
      0 or 1, or `{"chosen", "rejected"}` of pairs. Others are left out.

  Returns:
    The figures; no ROC curve if all labels are equal, none if no line is left.
  """
  chosen, rejected = _pairs(scores)
  if chosen.size:
    values = np.concatenate([chosen, rejected])
    labels = np.repeat([1.0, 0.0], chosen.size)
    predicted, outcomes = classification.preference_confidence(chosen, rejected)
    measured = classification.preference_metrics(chosen, rejected)
    names, start, counted = ("chosen", "rejected"), 0.5, "pairs"
    axis = "confidence in the favoured response"
  else:
    values, labels = _labelled(scores)
    if not values.size:
      return []
    predicted, outcomes = special.expit(values), labels
    measured = classification.binary_metrics(values, labels)
    names, start, counted = ("label 1", "label 0"), 0.0, "responses"
    axis = "predicted probability of label 1"
  figures = []
  if 0 < labels.sum() < labels.size:
    figures.append(_roc(values, labels, names))
  bins = classification.calibration_bins(predicted, outcomes)
  figures.append(
    _reliability(bins, measured["calibration_error"], axis, start, counted)
  )
  figures.append(_histogram(values, labels, names))
  return figures


def _roc(
  values: np.ndarray, labels: np.ndarray, names: tuple[str, str]
) -> svg.Figure:
  false_rate, true_rate, _ = sklearn_metrics.roc_curve(labels, values)
  area = classification.auroc(values, labels)
  drawing = svg.Drawing(300)
  # As wide as high: 234 units each way.
  axes = drawing.axes(left=73, right=73)
  axes.grid(visible=True, axis="both")
  chance = svg.Line("", np.array([0, 1]), np.array([0, 1]), "muted", "dashed")
  svg.draw_line(axes, chance)
  svg.draw_line(axes, svg.Line("", false_rate, true_rate, "c1", "bold"))
  axes.fill_between(
    false_rate, true_rate, color=svg.COLOURS["c1"], alpha=0.1, linewidth=0
  )
  axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(svg.in_percent())
    axis.set_major_locator(MaxNLocator(5, steps=svg.TICKS))
  axes.set_xlabel(f"{names[1]} scored above the threshold")
  drawing.text(31, 4, f"{names[0]} scored above the threshold")
  ones = int(labels.sum())
  alt = (
    f"ROC curve of the reward model, area {area:.3f}, {ones} {names[0]} and "
    f"{labels.size - ones} {names[1]}."
  )
  legend = (
    (f"AUROC {area:.3f}", "c1", "bold"),
    ("chance 0.5", "muted", "dashed"),
  )
  return svg.Figure("ROC curve", drawing.svg("roc"), alt, legend)


def _reliability(
  bins: classification.CalibrationBins,
  error: float,
  axis: str,
  start: float,
  counted: str,
) -> svg.Figure:
  drawing = svg.Drawing(300)
  axes = drawing.axes(bottom=112)
  below = drawing.axes(top=208)
  below.sharex(axes)
  filled = np.flatnonzero(bins.counts)
  bins = classification.CalibrationBins(*(column[filled] for column in bins))
  centres = (filled + 0.5) / classification.CALIBRATION_BINS
  _draw_reliability(axes, bins, start)
  _draw_counts(below, bins, centres)
  below.set_xlabel(axis)
  drawing.text(6, 4, "observed frequency")
  drawing.text(6, 190, counted)
  alt = (
    f"Reliability diagram, expected calibration error {error:.3f}. "
    + "; ".join(
      f"{100 * p:.0f}% predicted, {100 * o:.0f}% observed, {n} {counted}"
      for n, p, o in zip(*bins, strict=True)
    )
    + "."
  )
  legend = (
    (f"calibration error {error:.3f}", "c1", "points"),
    ("calibrated", "muted", "dashed"),
  )
  note = f"Bars: 95% Wilson intervals. Below: {counted} in each bin."
  return svg.Figure("Calibration", drawing.svg("cal"), alt, legend, note)


def _draw_reliability(
  axes: Axes, bins: classification.CalibrationBins, start: float
) -> None:
  ends = np.array([start, 1.0])
  svg.draw_line(axes, svg.Line("", ends, ends, "muted", "dashed"))
  intervals = [
    classification.wilson_interval(observed * n, int(n))
    for n, observed in zip(bins.counts, bins.observed, strict=True)
  ]
  low, high = np.array(intervals).T
  # A share of exactly 0 or 1 can lie outside its interval by a rounding error.
  spread = np.maximum([bins.observed - low, high - bins.observed], 0)
  axes.errorbar(
    bins.predicted,
    bins.observed,
    spread,
    fmt="o-",
    color=svg.COLOURS["c1"],
    ms=4,
    lw=1.4,
    elinewidth=1,
  )
  axes.set(xlim=(start - 0.02, 1.02), ylim=(-0.03, 1.03))
  axes.tick_params(labelbottom=False)
  axes.yaxis.set_major_formatter(svg.in_percent())


def _draw_counts(
  axes: Axes, bins: classification.CalibrationBins, centres: np.ndarray
) -> None:
  width = 0.86 / classification.CALIBRATION_BINS
  colour = svg.COLOURS["c1"]
  axes.bar(centres, bins.counts, width, color=colour, alpha=0.45)
  for at, n in zip(centres, bins.counts, strict=True):
    axes.text(
      at,
      n,
      f"{n}",
      ha="center",
      va="bottom",
      fontsize=8,
      color=svg.COLOURS["muted"],
    )
  axes.xaxis.set_major_formatter(svg.in_percent())
  axes.set_yticks([])
  axes.set_ylim(0, 1.3 * bins.counts.max())


def _histogram(
  values: np.ndarray, labels: np.ndarray, names: tuple[str, str]
) -> svg.Figure:
  drawing = svg.Drawing(300)
  axes = drawing.axes()
  edges = np.histogram_bin_edges(values, bins=30)
  parts = []
  for label, name, colour in ((0, names[1], "c2"), (1, names[0], "c1")):
    part = values[labels == label]
    shade = svg.COLOURS[colour]
    axes.hist(part, edges, color=shade, alpha=0.25, histtype="stepfilled")
    axes.hist(part, edges, color=shade, linewidth=1.6, histtype="step")
    if part.size:
      parts.append(f"{name}: {part.size}, mean {part.mean():.3g}")
  axes.set_xlabel("score (logit)")
  axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=svg.TICKS))
  drawing.text(6, 4, "responses")
  alt = "Histogram of reward-model scores. " + "; ".join(parts) + "."
  legend = ((names[0], "c1", "bold"), (names[1], "c2", "bold"))
  return svg.Figure("Scores", drawing.svg("scores"), alt, legend)


def _pairs(scores: Rows) -> tuple[np.ndarray, np.ndarray]:
  return _columns(scores, "chosen", "rejected")


def _labelled(scores: Rows) -> tuple[np.ndarray, np.ndarray]:
  values, labels = _columns(scores, "score", "label")
  known = (labels == 0) | (labels == 1)
  return values[known], labels[known]


def _columns(
  scores: Rows, first: str, second: str
) -> tuple[np.ndarray, np.ndarray]:
  both = [
    (numbers.number(row[first]), numbers.number(row[second]))
    for row in scores
    if first in row and second in row
  ]
  pairs = np.array(both).reshape(-1, 2)
  return tuple(pairs[np.isfinite(pairs).all(axis=1)].T)
