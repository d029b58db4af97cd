"""Lines of several settings in one figure: their colours, and their seeds."""

from collections.abc import Sequence

import numpy as np

from perl_jax.reporting import figures, settings, svg, vocabulary

# Colours of settings; a fifth and further ones are dashed.
COLOURS = ("c1", "c2", "c3", "c4")
# Points of a curve that are drawn as such.
_MOST_MARKERS = 40


def styles(
  found: Sequence[settings.Setting],
) -> list[tuple[str, str, settings.Setting]]:
  """(colour, kind of line, setting) of each."""
  return [(*style(i), setting) for i, setting in enumerate(found)]


def style(number: int) -> tuple[str, str]:
  """(colour, kind of line) of the line of this number."""
  kind = "points" if number < len(COLOURS) else "dashed"
  return COLOURS[number % len(COLOURS)], kind


def band(
  label: str, x: np.ndarray, values: np.ndarray, colour: str, kind: str
) -> svg.Line:
  """Mean over runs, and the range between the lowest and the highest.

  Args:
    label: Name of the line in the legend.
    x: `[n]`.
    values: `[runs, n]`; nan where a run has none.
    colour: A key of `svg.COLOURS`.
    kind: Kind of the line.
  """
  good = np.isfinite(values).any(axis=0) & np.isfinite(x)
  x, values = x[good], values[:, good]
  mean = np.nanmean(values, axis=0)
  ends = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
  if kind == "points" and len(x) > _MOST_MARKERS:
    kind = "bold"
  return svg.Line(
    label, x, mean, colour, kind, ends if len(values) > 1 else None
  )


def figure(
  stage: str,
  key: str,
  lines: Sequence[svg.Line],
  x_label: str,
  *,
  kind: str = "curve",
  title: str = "",
) -> svg.Figure:
  """A figure of a metric.

  Args:
    stage: Name of the stage.
    key: Key of the metric.
    lines: At least one.
    x_label: Name of the horizontal axis.
    kind: Makes the identifier unique where a metric is drawn twice.
    title: What is drawn; "" is the label of the metric.
  """
  metric = vocabulary.row_of(key, stage)
  title = title or vocabulary.label_of(key, stage)
  return svg.curves(
    f"{stage}-{kind}-{figures.identifier(key)}",
    title[0].upper() + title[1:],
    metric.unit,
    lines,
    percent=metric.percent,
    whole=False,
    zero=metric.name == "kl",
    x_label=x_label,
  )
