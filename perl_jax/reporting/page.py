"""The report as one HTML page: no script, no other file, nothing fetched."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from perl_jax.reporting import figures, headline, samples, scores, style, svg

TITLES = {
  "sft": "Supervised fine-tuning",
  "reward": "Reward model",
  "rl": "Reinforcement learning",
  "dpo": "Direct preference optimisation",
  "evaluate": "Evaluation",
}


class Stage(NamedTuple):
  """What one stage has left behind; anything may be empty."""

  name: str
  config: Mapping[str, object]
  rows: Sequence[Mapping[str, object]]
  samples: Sequence[Mapping[str, object]]
  scores: Sequence[Mapping[str, object]]


class Section(NamedTuple):
  """A heading and what stands below it; left out if that is empty."""

  link: str
  title: str
  body: str


def page(
  title: str,
  when: str,
  summary: Mapping[str, object],
  stages: Sequence[Stage],
  config: Mapping[str, object],
  command: str,
) -> str:
  """The whole page.

  Args:
    title: Name of the run.
    when: When it ended, in words.
    summary: The flat summary of all stages, see `headline`.
    stages: In the order in which they ran.
    config: Resolved config of the whole run; empty for a single stage.
    command: What was typed; "" if nobody wrote it down.
  """
  policies = [stage for stage in stages if stage.name in ("rl", "dpo")]
  sections = [
    Section("Results", "What was achieved", _results(summary)),
    *(
      Section(stage.name.upper(), *_progress(stage, summary))
      for stage in policies
    ),
    Section("Curves", "Curves of each stage", _curves(stages, policies)),
    Section("Reward model", "How good the reward model is", _scores(stages)),
    Section("Samples", "Samples", _samples(stages)),
    Section("Time and memory", "Time and memory", _costs(summary, stages)),
    Section("Rerun", "How to run it again", _configs(stages, config, command)),
  ]
  sections = [section for section in sections if section.body]
  lede = headline.takeaway(summary)
  lede = escape(lede).replace("-", "&minus;")
  lede = f'<p class="lede">{lede}</p>' if lede else ""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)} · perl_jax report</title>\n"
    f"<style>{style.CSS}</style>\n</head>\n<body>\n<header>"
    f'<p class="kicker">perl_jax report{escape(when and f" · {when}")}</p>'
    f"<h1>{escape(title)}</h1>{lede}{_body(sections)}\n"
    "<footer>Made by perl_jax from the run's own files.</footer>\n"
    "</body>\n</html>\n"
  )


def _body(sections: Sequence[Section]) -> str:
  """The links, which end the page's header, and the sections."""
  ids = [section.link.lower().replace(" ", "-") for section in sections]
  links = "".join(
    f'<li><a href="#{i}">{escape(s.link)}</a></li>'
    for i, s in zip(ids, sections, strict=True)
  )
  body = "\n".join(
    f'<section aria-labelledby="{i}"><h2 id="{i}">{escape(s.title)}</h2>\n'
    f"{s.body}</section>"
    for i, s in zip(ids, sections, strict=True)
  )
  return (
    f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
    f"<main>{body}</main>"
  )


def _results(summary: Mapping[str, object]) -> str:
  rows = headline.headline(summary)
  parts = []
  if rows:
    cells = []
    for label, before, after, change, better in rows:
      colour = {True: " good", False: " bad", None: ""}[better]
      cells.append(
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="number">{_figure_text(before)}</td>'
        f'<td class="number strong">{_figure_text(after)}</td>'
        f'<td class="number{colour}">{_figure_text(change)}</td></tr>'
      )
    parts.append(_table(("", "Before", "After", "Change"), cells))
  if summary:
    cells = [
      f'<tr><th scope="row"><code>{escape(key)}</code></th>'
      f'<td class="number">{escape(_value(value))}</td></tr>'
      for key, value in summary.items()
    ]
    table = _table(("Key", "Value"), cells)
    opened = "" if rows else " open"
    parts.append(
      f"<details{opened}><summary>All {len(cells)} numbers of the summary"
      f"</summary>{table}</details>"
    )
  return "".join(parts)


def _progress(stage: Stage, summary: Mapping[str, object]) -> tuple[str, str]:
  drawn = figures.policy_figures(stage.rows, summary, stage.name)
  titles = [figure.title for figure in drawn]
  text = (
    "<p>The reward is what the policy was trained on. Success is judged "
    "independently of it: where the reward rises and success does not, the "
    "policy exploits the reward model.</p>"
  )
  if len(titles) < 3:
    text = ""
  title = f"{TITLES[stage.name]}: reward, success and KL"
  return title, (text + _figures(drawn, large=True)) if drawn else ""


def _curves(stages: Sequence[Stage], policies: Sequence[Stage]) -> str:
  parts = []
  for stage in stages:
    drawn = stage in policies
    leave_out = figures.policy_metrics(stage.rows) if drawn else ()
    first, rest = figures.stage_figures(stage.name, stage.rows, leave_out)
    if not first:
      first, rest = rest, []
    if not first:
      continue
    parts.append(f"<h3>{escape(TITLES.get(stage.name, stage.name))}</h3>")
    parts.append(_figures(first))
    if rest:
      parts.append(
        f"<details><summary>{len(rest)} more</summary>"
        f"{_figures(rest)}</details>"
      )
  return "".join(parts)


def _scores(stages: Sequence[Stage]) -> str:
  for stage in stages:
    drawn = scores.reward_model_figures(stage.scores)
    if drawn:
      return "<p>On held-out rows.</p>" + _figures(drawn)
  return ""


def _samples(stages: Sequence[Stage]) -> str:
  order = ("rl", "dpo", "evaluate")
  for stage in sorted(
    stages, key=lambda s: order.index(s.name) if s.name in order else 9
  ):
    text = samples.samples_html(stage.samples)
    if text:
      return text
  return ""


def _costs(summary: Mapping[str, object], stages: Sequence[Stage]) -> str:
  names = [
    key.split(".", 1)[1]
    for key in summary
    if key.startswith(("seconds.", "memory.")) and key != "seconds.total"
  ]
  names = list(dict.fromkeys(names))
  kinds = [
    (kind, title, form)
    for kind, title, form in (
      ("seconds", "Time", headline.duration),
      ("memory", "Peak memory", headline.size),
    )
    if any(f"{kind}.{name}" in summary for name in names)
  ]
  rows = []
  for name in names:
    cells = f'<tr><th scope="row">{escape(TITLES.get(name, name))}</th>'
    for kind, _, form in kinds:
      values = {n: headline.number(summary.get(f"{kind}.{n}")) for n in names}
      most = max((v for v in values.values() if v > 0), default=math.inf)
      share = values[name] / most
      bar = _bar([("", share, "c1")]) if share > 0 else ""
      cells += f'<td class="number">{escape(form(values[name]))}</td>'
      cells += f'<td class="bars">{bar}</td>'
    rows.append(cells + "</tr>")
  header = [""]
  for _, title, _ in kinds:
    header += [title, ""]
  table = _table(header, rows) if rows else ""
  return table + "".join(_phases(stage) for stage in stages)


def _phases(stage: Stage) -> str:
  """Where a step spends its time; `seconds/step`, if there, is the whole."""
  # An evaluation is timed on a line of its own; it is no part of every step.
  rows = [row for row in stage.rows if "seconds/step" in row] or stage.rows
  medians = {}
  for key in sorted({key for row in rows for key in row}):
    values = figures.series(rows, key)[1]
    values = values[np.isfinite(values)]
    if key.startswith("seconds/") and values.size:
      medians[key.removeprefix("seconds/")] = float(np.median(values))
  step = medians.pop("step", 0.0)
  if not medians or sum(medians.values()) <= 0:
    return ""
  rest = step - sum(medians.values())
  if rest > 0.01 * step:
    medians["other"] = rest
  whole = sum(medians.values())
  colours = ("c1", "c2", "c3", "c4", "muted")
  parts = [
    (f"{name} {headline.duration(value)}", value / whole, colours[i % 5])
    for i, (name, value) in enumerate(
      sorted(medians.items(), key=lambda item: -item[1])
    )
  ]
  legend = tuple((text, colour, "points") for text, _, colour in parts)
  return (
    f"<h3>{escape(TITLES.get(stage.name, stage.name))}: a step by phase</h3>"
    f'<p class="note">Medians over the steps.</p>'
    f"{_bar(parts)}{_legend(legend)}"
  )


def _configs(
  stages: Sequence[Stage], config: Mapping[str, object], command: str
) -> str:
  parts = []
  if command:
    parts.append(f'<pre class="block"><code>{escape(command)}</code></pre>')
  named = [("Resolved config", config)]
  named += [
    (f"Resolved config: {TITLES.get(s.name, s.name)}", s.config) for s in stages
  ]
  for title, value in named:
    if value:
      text = json.dumps(value, indent=2, ensure_ascii=False)
      parts.append(
        f"<details><summary>{escape(title)}</summary>"
        f'<pre class="block"><code>{escape(text)}</code></pre></details>'
      )
  return "".join(parts)


def _figures(drawn: Iterable[svg.Figure], large: bool = False) -> str:
  parts = []
  for figure in drawn:
    parts.append(
      f"<figure><figcaption><b>{escape(figure.title)}</b>"
      f"{_legend(figure.legend)}</figcaption>"
      f'<div role="img" aria-label="{escape(figure.alt)}">{figure.svg}</div>'
      f'<p class="note">{escape(figure.note)}</p></figure>'
    )
  kind = "figures large" if large else "figures"
  return f'<div class="{kind}">{"".join(parts)}</div>'


def _legend(items: Iterable[tuple[str, str, str]]) -> str:
  chips = "".join(
    f'<span><i class="{kind}" style="--chip: var(--{colour})"></i>'
    f"{escape(text)}</span>"
    for text, colour, kind in items
  )
  return f'<div class="legend">{chips}</div>'


def _bar(parts: Iterable[tuple[str, float, str]]) -> str:
  """A bar of coloured shares; decoration, the numbers stand beside it."""
  spans = "".join(
    f'<span style="width: {100 * share:.2f}%; --chip: var(--{colour})"></span>'
    for _, share, colour in parts
  )
  return f'<div class="bar" aria-hidden="true">{spans}</div>'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
  cells = []
  for i, text in enumerate(header):
    kind = ' class="number"' if i and text else ""
    cells.append(
      f'<th scope="col"{kind}>{escape(text)}</th>' if text else "<td></td>"
    )
  return (
    f'<div class="wide"><table><thead><tr>{"".join(cells)}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _figure_text(text: str) -> str:
  """A number with a true minus, its interval in small print below."""
  text, bracket, interval = escape(text).replace("-", "&minus;").partition(" (")
  small = f'<br><span class="note">({interval}</span>' if bracket else ""
  return text + small


def _value(value: object) -> str:
  x = headline.number(value)
  if isinstance(value, float) and math.isfinite(x):
    return f"{x:.6g}"
  return value if isinstance(value, str) else json.dumps(value)
