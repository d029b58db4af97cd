"""Which curves a run gives: from rows of metrics to drawings.

Rows are the lines of metrics.jsonl, `{"step": 3, "train/loss": 0.7}`; a metric
is `<who>/<what>` and every `what` is one figure with a line for each `who`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from perl_jax.reporting import headline, svg

Rows = Sequence[Mapping[str, object]]

# The figures of a stage that are shown open, in this order.
_FIRST = (
  "loss",
  "accuracy",
  *headline.JUDGEMENTS,
  "auroc",
  "reward",
  "kl",
  "policy_loss",
  "value_loss",
  "length",
  "stop_rate",
  "entropy",
  "repetition",
  "margin",
  "calibration_error",
)
_UNITS = {
  ("sft", "loss"): "nats per token",
  ("reward", "loss"): "nats",
  ("dpo", "loss"): "nats per pair",
  ("sft", "accuracy"): "% of target tokens",
  "auroc": "area under the ROC curve",
  "kl": "nats",
  "log_loss": "nats",
  "length": "tokens",
  "entropy": "nats per token",
  "kl_per_token": "nats",
  "reward": "score of the reward model",
  "gold": "% of responses",
  "gradient_norm": "L2 norm",
}
# Not about learning; shown as a table, if at all.
_NOT_CURVES = ("seconds", "rate")
_COLOUR_OF = {"train": "c1", "rollout": "c1", "validation": "c2"}


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
  """(steps, values) of the rows that have the metric, `[n]` each, by step."""
  points = {
    headline.number(row.get("step")): headline.number(row[key])
    for row in rows
    if key in row and np.isfinite(headline.number(row.get("step")))
  }
  steps = sorted(points)
  return np.array(steps), np.array([points[step] for step in steps])


def policy_metrics(rows: Rows) -> tuple[str, ...]:
  """What `policy_figures` draws: reward, up to two judgements, KL."""
  names = {what for _, what in _metrics(rows)}
  judged = [name for name in headline.JUDGEMENTS if name in names]
  return ("reward", *judged[:2], "kl")


def policy_figures(
  rows: Rows, summary: Mapping[str, object], stage: str
) -> list[svg.Figure]:
  """Reward, independent judgement and KL over the same steps, side by side.

  Where both were measured on validation prompts there is a fourth: what was
  gained against how far the policy went from the anchor.
  """
  names, ends = policy_metrics(rows), _ends(rows)
  found = headline.comparisons(summary, stage)
  figures = []
  for name in names:
    lines, remark = _lines(rows, name)
    before = headline.number(found.get(name, (None, None))[0])
    if ends and np.isfinite(before):
      at = np.array([before, before])
      lines.append(svg.Line("anchor", np.array(ends), at, "muted", "dashed"))
    if lines:
      figures.append(
        svg.curves(
          f"{stage}-main-{name}",
          _title(name),
          _unit(stage, name),
          lines,
          percent=name in headline.RATES,
          whole=name in headline.RATES,
          zero=name == "kl",
          x_label=f"{stage.upper()} step",
          x_range=ends,
          remark=remark,
        )
      )
  gained = names[1] if len(names) > 2 else names[0]
  return figures + _frontier(rows, stage, gained)


def stage_figures(
  stage: str, rows: Rows, leave_out: Sequence[str] = ()
) -> tuple[list[svg.Figure], list[svg.Figure]]:
  """Every metric of a stage: (those to show, the rest to fold away)."""
  names = sorted({what for _, what in _metrics(rows)} - set(leave_out))
  first, rest = [], []
  for name in sorted(
    names, key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST)
  ):
    lines, remark = _lines(rows, name)
    if all(len(line.x) < 2 for line in lines):
      continue  # a point is no curve; the summary has its value
    figure = svg.curves(
      f"{stage}-{_identifier(name)}",
      _title(name),
      _unit(stage, name),
      lines,
      percent=name in headline.RATES,
      zero=name in headline.JUDGEMENTS,
      x_range=_ends(rows),
      remark=remark,
    )
    (first if name in _FIRST else rest).append(figure)
  return first, rest


def _frontier(rows: Rows, stage: str, name: str) -> list[svg.Figure]:
  keys = ("step", "validation/kl", f"validation/{name}")
  points = [
    [headline.number(row[key]) for key in keys]
    for row in rows
    if all(key in row for key in keys)
  ]
  points = np.array([point for point in points if np.isfinite(point).all()])
  if len(points) < 2:
    return []
  steps, kl, gained = points.T
  percent = name in headline.RATES
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
  if percent:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(svg.in_percent())
  axes.yaxis.set_major_locator(MaxNLocator(5, steps=svg.TICKS))
  axes.set_xlabel("KL to the anchor (nats)")
  drawing.text(6, 4, _unit(stage, name))
  title = f"{_title(name)} against KL"
  ends = [f"{100 * v:.1f}%" if percent else f"{v:.4g}" for v in gained]
  alt = (
    f"{title} on validation prompts: {ends[0]} at {kl[0]:.3g} nats, "
    f"{ends[-1]} at {kl[-1]:.3g} nats."
  )
  legend = (("validation", "c2", "points"),)
  return [svg.Figure(title, drawing.svg(f"{stage}-kl-{name}"), alt, legend)]


def _lines(rows: Rows, name: str) -> tuple[list[svg.Line], str]:
  """The lines of one metric, and over how many rows the bold ones average."""
  lines, remark = [], ""
  spare = ["ink", "muted", "c4", "c3"]
  for who in sorted({w for w, what in _metrics(rows) if what == name}):
    x, y = series(rows, f"{who}/{name}" if who else name)
    if not np.isfinite(y).any():
      continue
    colour = _COLOUR_OF.get(who)
    if colour is None or colour in {line.colour for line in lines}:
      colour = spare.pop() if len(spare) > 1 else spare[0]
    if who == "validation" or len(x) < 40:
      lines.append(svg.Line(who, x, y, colour, "points"))
      continue
    width = len(x) // 20
    remark = f"bold: mean of {width}"
    lines.append(svg.Line("", x, y, colour, "thin"))
    mean = svg.running_mean(y, width)
    lines.append(svg.Line(who or name, x, mean, colour, "bold"))
  return lines, remark


def _ends(rows: Rows) -> tuple[float, float] | None:
  """First and last step, so that the figures of a stage line up."""
  steps = [headline.number(row.get("step")) for row in rows]
  steps = [step for step in steps if np.isfinite(step)]
  return (min(steps), max(steps)) if steps else None


def _metrics(rows: Rows) -> set[tuple[str, str]]:
  """All (who, what), without the clock's."""
  keys = {key for row in rows for key in row} - {"step"}
  split = [key.rpartition("/")[::2] for key in keys]
  return {
    (who, what) for who, what in split if who.split("/")[0] not in _NOT_CURVES
  }


def _title(name: str) -> str:
  # The unit stands in the corner of the figure already.
  text = headline.readable(name).split(" (")[0]
  return text[0].upper() + text[1:]


def _unit(stage: str, name: str) -> str:
  unit = _UNITS.get((stage, name)) or _UNITS.get(name, "")
  return unit or ("%" if name in headline.RATES else "")


def _identifier(name: str) -> str:
  return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
