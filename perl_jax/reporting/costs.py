"""Time and memory of the stages of a run, as HTML."""

import math
from collections.abc import Mapping
from html import escape

import numpy as np

from perl_jax.reporting import figures, markup, numbers, vocabulary

_COLOURS = ("c1", "c2", "c3", "c4", "muted")


def totals(summary: Mapping[str, object], titles: Mapping[str, str]) -> str:
  """A table of the time and the peak memory of each stage; "" without any.

  Args:
    summary: The flat summary, with `seconds.<stage>` and `memory.<stage>`.
    titles: {name of a stage: its title}.
  """
  names = [
    key.split(".", 1)[1]
    for key in summary
    if key.startswith(("seconds.", "memory.")) and key != "seconds.total"
  ]
  names = list(dict.fromkeys(names))
  kinds = [
    (kind, title, form)
    for kind, title, form in (
      ("seconds", "Time", numbers.duration),
      ("memory", "Peak memory", numbers.size),
    )
    if any(f"{kind}.{name}" in summary for name in names)
  ]
  rows = []
  for name in names:
    cells = f'<tr><th scope="row">{escape(titles.get(name, name))}</th>'
    for kind, _, form in kinds:
      values = {n: numbers.number(summary.get(f"{kind}.{n}")) for n in names}
      most = max((v for v in values.values() if v > 0), default=math.inf)
      share = values[name] / most
      bar = markup.bar([(share, "c1")]) if share > 0 else ""
      cells += f'<td class="number">{escape(form(values[name]))}</td>'
      cells += f'<td class="bars">{bar}</td>'
    rows.append(cells + "</tr>")
  header = [""]
  for _, title, _ in kinds:
    header += [title, ""]
  return markup.table(header, rows) if rows else ""


def breakdown(title: str, rows: figures.Rows, seconds: float) -> str:
  """What a stage and each of its steps spent their time on; "" if unknown.

  Args:
    title: Title of the stage.
    rows: Lines of its metrics.jsonl.
    seconds: Wall-clock seconds of the stage, nan if they are unknown.
  """
  stage, step = _of_stage(rows, seconds), _of_step(rows)
  medians = {
    key: float(np.median(values))
    for key in ("seconds/step", "rate/tokens", "rate/mfu")
    if (values := _values(rows, key)).size
  }
  parts = []
  if stage:
    parts += ["<p>The whole stage:</p>", _bar(stage)]
  if "seconds/step" in medians or step:
    facts = [
      numbers.duration(value)
      if key == "seconds/step"
      else f"{numbers.show(key, value)} {vocabulary.row_of(key).unit}"
      if key == "rate/tokens"
      else f"{numbers.show(key, value)} {vocabulary.row_of(key).label}"
      for key, value in medians.items()
    ]
    shown = f": {', '.join(facts)}" if facts else ""
    parts.append(f"<p>A training step, median{escape(shown)}</p>")
    parts.append(_bar(step) if step else "")
  return f"<h3>{escape(title)}</h3>{''.join(parts)}" if parts else ""


def _of_stage(rows: figures.Rows, seconds: float) -> dict[str, float]:
  """Seconds of training steps, compilation, evaluation and the rest.

  `seconds/step` is the mean over the steps since the last line that has it.
  """
  steps, means = figures.series(rows, "seconds/step")
  spent = np.diff(steps, prepend=0.0) * means
  found = {
    "training steps": float(np.nansum(spent)),
    "compilation": sum(
      float(_values(rows, key).sum())
      for key in ("seconds/compile", "seconds/evaluate_compile")
    ),
    "evaluation": float(_values(rows, "seconds/evaluate").sum()),
  }
  found = {name: value for name, value in found.items() if value > 0}
  return _with_rest(found, seconds) if found else {}


def _of_step(rows: figures.Rows) -> dict[str, float]:
  """Median seconds of each phase of a step, where there are phases."""
  keys = {key for row in rows for key in row}
  keys = {key for key in keys if vocabulary.row_of(key).phase}
  found = {}
  for key in sorted(keys, key=vocabulary.rank_of):
    values = _values(rows, key)
    if values.size and np.median(values) > 0:
      found[vocabulary.label_of(key)] = float(np.median(values))
  steps = _values(rows, "seconds/step")
  whole = float(np.median(steps)) if steps.size else math.nan
  return _with_rest(found, whole) if found else {}


def _with_rest(found: dict[str, float], whole: float) -> dict[str, float]:
  rest = whole - sum(found.values())
  return found | ({"other": rest} if rest > 0.01 * whole else {})


def _values(rows: figures.Rows, key: str) -> np.ndarray:
  values = np.array([numbers.number(row[key]) for row in rows if key in row])
  return values[np.isfinite(values)]


def _bar(spent: Mapping[str, float]) -> str:
  whole = sum(spent.values())
  items = sorted(spent.items(), key=lambda item: -item[1])
  colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(items))]
  bar = [
    (value / whole, colour)
    for (_, value), colour in zip(items, colours, strict=True)
  ]
  legend = [
    (f"{name} {numbers.duration(value)}", colour, "points")
    for (name, value), colour in zip(items, colours, strict=True)
  ]
  return markup.bar(bar) + markup.legend(legend)
