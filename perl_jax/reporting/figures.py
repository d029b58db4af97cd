"""The curves of a run: from lines of metrics.jsonl to drawings.

Lines are objects like `{"step": 3, "train/loss": 0.7}`. A key is
`<prefix>/<name>`; each name is one figure, with a curve for each prefix.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from perl_jax.reporting import headline, numbers, svg, vocabulary

Rows = Sequence[Mapping[str, object]]


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of a metric, `[n]` each, in the order of the steps.

  Args:
    rows: Lines of metrics.jsonl; of several at one step the last counts.
    key: Key of the metric. A value that is no number is nan.
  """
  points = {
    numbers.number(row.get("step")): numbers.number(row[key])
    for row in rows
    if key in row and np.isfinite(numbers.number(row.get("step")))
  }
  steps = sorted(points)
  return np.array(steps), np.array([points[step] for step in steps])


def is_policy(rows: Rows) -> bool:
  """Whether the metrics are those of a policy: a reward, or a KL."""
  return not {"reward", "kl"}.isdisjoint(name for _, name in _metrics(rows))


def policy_metrics(rows: Rows) -> tuple[str, ...]:
  """Names that `policy_figures` draws.

  The reward, up to two checks or a check and a judge's win rate, the KL.
  """
  names = {name for _, name in _metrics(rows)}
  others = [name for name in vocabulary.INDEPENDENT if name in names]
  if "win_rate" in others:
    others = [*others[:1], "win_rate"] if len(others) > 1 else others
  return ("reward", *others[:2], "kl")


def policy_figures(
  rows: Rows, summary: Mapping[str, object], stage: str
) -> list[svg.Figure]:
  """Reward, checks and KL over the same steps, side by side.

  Where they were measured on validation prompts there is one more: the first
  check, or a judge's win rate, or the reward, against the KL to the anchor.

  Args:
    rows: Lines of metrics.jsonl of the stage.
    summary: The flat summary of all stages; has the values of the anchor.
    stage: Name of the stage.
  """
  names, ends = policy_metrics(rows), _ends(rows)
  found = headline.comparisons(summary, stage)
  figures = []
  for name in names:
    metric = vocabulary.row_of(name, stage)
    lines, remark = _lines(rows, name)
    before = numbers.number(found.get(name, (None, None))[0])
    if ends and np.isfinite(before):
      at = np.array([before, before])
      lines.append(svg.Line("anchor", np.array(ends), at, "muted", "dashed"))
    if lines:
      figures.append(
        svg.curves(
          f"{stage}-main-{name}",
          title_of(name),
          metric.unit,
          lines,
          percent=metric.percent,
          whole=metric.percent,
          zero=name == "kl",
          x_label=f"{stage.upper()} step",
          x_range=ends,
          remark=remark,
        )
      )
  against_kl = names[1] if len(names) > 2 else names[0]
  return figures + _frontier(rows, stage, against_kl)


def stage_figures(
  stage: str, rows: Rows, leave_out: Sequence[str] = ()
) -> tuple[list[svg.Figure], list[svg.Figure]]:
  """Figures of all metrics of a stage: (the main ones, the others).

  Args:
    stage: Name of the stage.
    rows: Lines of its metrics.jsonl.
    leave_out: Names that are shown elsewhere.
  """
  names = {name for _, name in _metrics(rows)} - set(leave_out)
  main, others = [], []
  for name in sorted(names, key=lambda name: (vocabulary.rank_of(name), name)):
    lines, remark = _lines(rows, name)
    if all(len(line.x) < 2 for line in lines):
      continue  # a point is no curve; the summary has its value
    metric = vocabulary.row_of(name, stage)
    figure = svg.curves(
      f"{stage}-{identifier(name)}",
      title_of(name, stage),
      metric.unit,
      lines,
      percent=metric.percent,
      zero=metric.check,
      x_range=_ends(rows),
      remark=remark,
    )
    # Not `accuracy_low`, which has the row of `accuracy`.
    is_main = metric.main and metric.name.split(".")[-1] == name
    (main if is_main else others).append(figure)
  return main, others


def _frontier(rows: Rows, stage: str, name: str) -> list[svg.Figure]:
  keys = ("step", "validation/kl", f"validation/{name}")
  points = [
    [numbers.number(row[key]) for key in keys]
    for row in rows
    if all(key in row for key in keys)
  ]
  points = np.array([point for point in points if np.isfinite(point).all()])
  if len(points) < 2:
    return []
  steps, kl, gained = points.T
  metric = vocabulary.row_of(name, stage)
  drawing = svg.Drawing()
  axes = drawing.axes()
  svg.draw_line(axes, svg.Line("", kl, gained, "c2", "points"))
  rise = 12 if gained[-1] >= gained[0] else -12
  sides = ("left", "right") if kl[-1] >= kl[0] else ("right", "left")
  for i, side, up in ((0, sides[0], -rise), (-1, sides[1], rise)):
    axes.annotate(
      f"step {steps[i]:g}",
      (kl[i], gained[i]),
      xytext=(0, up),
      textcoords="offset points",
      ha=side,
      va="center",
      fontsize=9.5,
      color=svg.COLOURS["muted"],
    )
  axes.margins(0.06, 0.12)
  if metric.percent:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(svg.in_percent())
  axes.yaxis.set_major_locator(MaxNLocator(5, steps=svg.TICKS))
  axes.set_xlabel("KL to the anchor (nats)")
  drawing.text(6, 4, metric.unit)
  title = f"{title_of(name)} against KL"
  ends = [f"{100 * v:.1f}%" if metric.percent else f"{v:.4g}" for v in gained]
  alt = (
    f"{title} on validation prompts: {ends[0]} at {kl[0]:.3g} nats, "
    f"{ends[-1]} at {kl[-1]:.3g} nats."
  )
  legend = (("validation", "c2", "points"),)
  return [svg.Figure(title, drawing.svg(f"{stage}-kl-{name}"), alt, legend)]


def _lines(rows: Rows, name: str) -> tuple[list[svg.Line], str]:
  """The curves of a metric, and over how many points the bold ones average."""
  lines, remark = [], ""
  spare = ["ink", "muted", "c4", "c3"]
  for prefix in sorted({p for p, other in _metrics(rows) if other == name}):
    x, y = series(rows, f"{prefix}/{name}" if prefix else name)
    if not np.isfinite(y).any():
      continue
    colour = vocabulary.COLOURS.get(prefix)
    if colour is None or colour in {line.colour for line in lines}:
      colour = spare.pop() if len(spare) > 1 else spare[0]
    if prefix == "validation" or len(x) < 40:
      lines.append(svg.Line(prefix, x, y, colour, "points"))
      continue
    width = len(x) // 20
    remark = f"bold: mean of {width}"
    lines.append(svg.Line("", x, y, colour, "thin"))
    mean = svg.running_mean(y, width)
    lines.append(svg.Line(prefix or name, x, mean, colour, "bold"))
  return lines, remark


def _ends(rows: Rows) -> tuple[float, float] | None:
  """First and last step, so that the figures of a stage line up."""
  steps = [numbers.number(row.get("step")) for row in rows]
  steps = [step for step in steps if np.isfinite(step)]
  return (min(steps), max(steps)) if steps else None


def _metrics(rows: Rows) -> set[tuple[str, str]]:
  """(prefix, name) of all metrics but times and rates."""
  keys = {key for row in rows for key in row} - {"step"}
  split = [key.rpartition("/")[::2] for key in keys]
  return {
    (prefix, name)
    for prefix, name in split
    if prefix.split("/")[0] not in vocabulary.CLOCKS
  }


def title_of(name: str, stage: str = "") -> str:
  """What a metric is called above its figure."""
  text = vocabulary.label_of(name, stage)
  return text[0].upper() + text[1:]


def identifier(name: str) -> str:
  """A name as part of an id in HTML."""
  return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
