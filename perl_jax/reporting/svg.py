"""Lines and axes as one small SVG that takes its colours from the page.

matplotlib draws in placeholder colours, which are then replaced by CSS
variables, and text stays text: one drawing serves light and dark pages, every
width, and readers who search or select. Legends are left to the page.
"""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH, HEIGHT = 380, 250
# Distances of ticks that people count in, as MaxNLocator wants them.
TICKS = (1, 2, 2.5, 5, 10)
# Placeholder -> CSS variable. c1 is training, c2 validation or the other class.
COLOURS = {
  "ink": "#010101",
  "muted": "#010102",
  "line": "#010103",
  "c1": "#010111",
  "c2": "#010112",
  "c3": "#010113",
  "c4": "#010114",
}
_RC = {
  "svg.fonttype": "none",
  "svg.hashsalt": "perl_jax",
  "path.simplify": True,
  "font.family": "DejaVu Sans",
  "font.size": 11,
  "axes.linewidth": 0.8,
  "axes.edgecolor": COLOURS["line"],
  "axes.labelcolor": COLOURS["muted"],
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.grid.axis": "y",
  "axes.axisbelow": True,
  "grid.color": COLOURS["line"],
  "grid.linewidth": 0.6,
  "text.color": COLOURS["muted"],
  "xtick.color": COLOURS["line"],
  "ytick.color": COLOURS["line"],
  "xtick.labelcolor": COLOURS["muted"],
  "ytick.labelcolor": COLOURS["muted"],
  "xtick.labelsize": 10.5,
  "ytick.labelsize": 10.5,
  "lines.solid_capstyle": "round",
}
# More points than this are drawn as the range of each of half as many bins.
_MOST_POINTS = 800


class Line(NamedTuple):
  """A curve through points.

  Attributes:
    label: Its name in the legend, "" to leave it out there.
    x, y: `[n]` each.
    colour: A key of `COLOURS`.
    kind: "thin", "bold", "points", "dashed" or "step".
    band: Lower and upper ends of a shaded range around it, `[n]` each.
    marks: A text beside each point, or none.
  """

  label: str
  x: np.ndarray
  y: np.ndarray
  colour: str = "c1"
  kind: str = "bold"
  band: tuple[np.ndarray, np.ndarray] | None = None
  marks: tuple[str, ...] = ()


class Figure(NamedTuple):
  """A drawing with its title, legend and description.

  Attributes:
    title: What is drawn.
    svg: The drawing.
    alt: The drawing in words, for readers who do not see it.
    legend: (label, colour, kind of line) of each entry.
    note: Small print below.
  """

  title: str
  svg: str
  alt: str
  legend: tuple[tuple[str, str, str], ...] = ()
  note: str = ""


class Drawing:
  """A canvas with fixed margins, so that neighbours on the page line up.

  Lengths are in units of the SVG; the drawing is `WIDTH` wide.
  """

  def __init__(self, height: int = HEIGHT):
    self.height = height
    with mpl.rc_context(_RC):
      self.canvas = Canvas(figsize=(WIDTH / 72, height / 72), dpi=72)
      self.canvas.patch.set_alpha(0)

  def axes(
    self,
    left: float = 48,
    bottom: float = 40,
    right: float = 14,
    top: float = 26,
  ) -> Axes:
    """Adds axes with these distances from the edges."""
    width = WIDTH - left - right
    height = self.height - bottom - top
    with mpl.rc_context(_RC):
      axes = self.canvas.add_axes(
        (
          left / WIDTH,
          bottom / self.height,
          width / WIDTH,
          height / self.height,
        )
      )
      axes.patch.set_alpha(0)
      axes.tick_params(length=0, pad=5)
      return axes

  def text(self, x: float, y: float, text: str, **style: object) -> None:
    """Adds text at a distance from the left and from the top."""
    with mpl.rc_context(_RC):
      self.canvas.text(x / WIDTH, 1 - y / self.height, text, va="top", **style)

  def svg(self, name: str) -> str:
    """The SVG element; `name` makes its ids unique on the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(_RC):
      self.canvas.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # In a page its style sheet would hold for everything; ours has the rules.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(
      r"<svg[^>]*>",
      f'<svg viewBox="0 0 {WIDTH} {self.height}" aria-hidden="true">',
      text,
      count=1,
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    for variable, placeholder in COLOURS.items():
      text = text.replace(placeholder, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", text)


def draw_line(axes: Axes, line: Line) -> None:
  """Draws a line in the style of its kind."""
  colour, x, y = COLOURS[line.colour], line.x, line.y
  if line.kind == "thin":
    x, y = thin_out(x, y)
  style = {
    "thin": {"linewidth": 0.9, "alpha": 0.4},
    "bold": {"linewidth": 2.0},
    "step": {"linewidth": 2.0, "drawstyle": "steps-post"},
    "points": {"linewidth": 1.6, "marker": "o", "markersize": 4.0},
    "dashed": {"linewidth": 1.2, "linestyle": (0, (4, 3))},
  }[line.kind]
  if line.band is not None:
    axes.fill_between(line.x, *line.band, color=colour, alpha=0.15, lw=0)
  axes.plot(x, y, color=colour, **style)
  for text, *at in zip(line.marks, line.x, line.y, strict=bool(line.marks)):
    axes.annotate(
      text,
      at,
      xytext=(0, 8),
      textcoords="offset points",
      ha="center",
      fontsize=9.5,
      color=COLOURS["muted"],
    )


def in_percent() -> FuncFormatter:
  """Labels of ticks at shares: 0.25 -> 25%."""
  return FuncFormatter(lambda share, _: f"{100 * share:.4g}%")


def curves(
  name: str,
  title: str,
  unit: str,
  lines: Sequence[Line],
  *,
  percent: bool = False,
  whole: bool = False,
  zero: bool = False,
  x_label: str = "step",
  x_range: tuple[float, float] | None = None,
  remark: str = "",
) -> Figure:
  """Lines over steps.

  Args:
    name: Identifier, unique on the page.
    title: What is drawn; the page prints it above.
    unit: Unit of the vertical axis, printed in its corner.
    lines: At least one; values that are not finite are left out and counted.
    percent: The values are shares; the axis is in percent.
    whole: The vertical axis is all of 0 to 1.
    zero: The vertical axis reaches 0.
    x_label: Name of the horizontal axis.
    x_range: Ends of the horizontal axis, to line up several figures.
    remark: Small print in the other corner.
  """
  drawing = Drawing()
  axes = drawing.axes()
  for line in lines:
    draw_line(axes, line)
  axes.set_ylim(*_limits(lines, percent, whole, zero))
  if x_range and x_range[0] < x_range[1]:
    pad = 0.02 * (x_range[1] - x_range[0])
    axes.set_xlim(x_range[0] - pad, x_range[1] + pad)
  integer = "step" in x_label
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=integer, steps=TICKS))
  axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICKS))
  if percent:
    axes.yaxis.set_major_formatter(in_percent())
  axes.set_xlabel(x_label, labelpad=4)
  drawing.text(6, 4, unit)
  drawing.text(WIDTH - 14, 4, remark, ha="right", fontsize=9.5)
  legend = tuple(
    (line.label, line.colour, line.kind) for line in lines if line.label
  )
  lost = sum(int(np.sum(~np.isfinite(line.y))) for line in lines)
  note = f"{lost} values that are not finite are left out." if lost else ""
  alt = describe(title, unit, lines, percent, x_label)
  return Figure(title, drawing.svg(name), alt, legend, note)


def describe(
  title: str,
  unit: str,
  lines: Sequence[Line],
  percent: bool,
  x_label: str = "step",
) -> str:
  """The first and last value of each line, in words."""
  parts = []
  for line in lines:
    shown = np.flatnonzero(np.isfinite(line.y))
    if not line.label or not shown.size:
      continue
    first, last = shown[0], shown[-1]
    a, b = (
      f"{100 * v:.1f}%" if percent else f"{v:.4g}"
      for v in (line.y[first], line.y[last])
    )
    if line.kind == "dashed":
      parts.append(f"{line.label}: {a}")
    else:
      parts.append(
        f"{line.label}: from {a} at {x_label} {line.x[first]:g} to {b} at "
        f"{x_label} {line.x[last]:g}"
      )
  return f"{title}, {unit}. " + "; ".join(parts) + "."


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
  """Mean over a centred window, cut off at the ends, of what is finite.

  Args:
    values: `[n]`.
    width: Number of values in a whole window.

  Returns:
    `[n]`; nan where no value in the window is finite.
  """
  good = np.isfinite(values)
  kernel = np.ones(width)
  sums = np.convolve(np.where(good, values, 0.0), kernel, "full")
  counts = np.convolve(good, kernel, "full")
  start = (width - 1) // 2
  sums, counts = (a[start : start + len(values)] for a in (sums, counts))
  return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def thin_out(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most 800 points: the lowest and the highest of each bin of steps."""
  if len(x) <= _MOST_POINTS:
    return x, y
  kept_x, kept_y = [], []
  for index in np.array_split(np.arange(len(x)), _MOST_POINTS // 2):
    good = index[np.isfinite(y[index])]
    if good.size:
      ends = {good[np.argmin(y[good])], good[np.argmax(y[good])]}
      kept_x += [x[i] for i in sorted(ends)]
      kept_y += [y[i] for i in sorted(ends)]
  return np.array(kept_x), np.array(kept_y)


def _limits(
  lines: Sequence[Line], percent: bool, whole: bool, zero: bool
) -> tuple[float, float]:
  if whole:
    return -0.03, 1.03
  shown = [y for line in lines for y in (line.y, *(line.band or ()))]
  values = np.concatenate(shown)
  values = values[np.isfinite(values)]
  low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
  if zero:
    low, high = min(low, 0.0), max(high, 0.0)
  # A flat line should look flat, not like the noise of its last digit.
  least = 0.05 if percent else max(1e-3, 0.02 * max(abs(low), abs(high)))
  missing = max(0.0, least - (high - low)) / 2
  low, high = low - missing, high + missing
  if percent:
    # No share is below 0 or above 1, so the axis does not suggest it.
    shift = max(0.0, -low) - max(0.0, high - 1)
    low, high = low + shift, high + shift
  pad = 0.06 * (high - low)
  return low - pad, high + pad
