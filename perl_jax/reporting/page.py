"""The report as one HTML page: no script, no other file, nothing fetched."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from perl_jax.reporting import (
  benchmarks,
  costs,
  diagnostics,
  figures,
  headline,
  markup,
  numbers,
  samples,
  scores,
  style,
  verdicts,
)


class Stage(NamedTuple):
  """A stage of the run and what it has written; all but its names may be empty.

  Attributes:
    name: Name of the task, such as "rl".
    title: Its title, such as "Reinforcement learning".
    result: Name of the model that the stage makes, such as "Policy".
    config: The resolved config.
    metrics: Lines of metrics.jsonl.
    samples: Lines of samples.jsonl.
    scores: Lines of scores.jsonl.
    verdicts: Lines of verdicts.jsonl.
    benchmark: What is in benchmark.json.
    notice: What to know before reading its samples, as a sentence.
  """

  name: str
  title: str
  result: str
  config: Mapping[str, object] = {}
  metrics: figures.Rows = ()
  samples: figures.Rows = ()
  scores: figures.Rows = ()
  verdicts: figures.Rows = ()
  benchmark: Mapping[str, object] = {}
  notice: str = ""


class Section(NamedTuple):
  """A section of the page, left out if its body is empty.

  Attributes:
    link: Its name among the links of the header.
    title: Its heading.
    body: HTML.
  """

  link: str
  title: str
  body: str


def render(
  title: str,
  when: str,
  summary: Mapping[str, object],
  stages: Sequence[Stage],
  config: Mapping[str, object],
  command: str,
) -> str:
  """Returns the HTML of the whole page.

  Args:
    title: Name of the run.
    when: When it ended, as text.
    summary: The flat summary of all stages, see `headline`.
    stages: All stages that the summary may speak of, in the order in which
      they run; those that did not run have left nothing.
    config: Resolved config of the whole run; empty for a single stage.
    command: The command line of the run, "" if it is unknown.
  """
  policies = [stage for stage in stages if figures.is_policy(stage.metrics)]
  results = {stage.name: stage.result for stage in stages}
  sections = [
    Section("Results", "What was achieved", _results(summary, results)),
    *(
      Section(stage.name.upper(), *_progress(stage, summary))
      for stage in policies
    ),
    Section("Curves", "Curves of each stage", _curves(stages, policies)),
    Section("Reward model", "How good the reward model is", _scores(stages)),
    Section(
      "Benchmarks",
      "Benchmarks of reward models",
      "".join(benchmarks.html(stage.benchmark) for stage in stages),
    ),
    Section("Judges", "What judges say", _verdicts(stages, summary)),
    Section("Samples", "Samples", _samples(stages)),
    Section("Time and memory", "Time and memory", _costs(summary, stages)),
    Section("Rerun", "How to run it again", _configs(stages, config, command)),
  ]
  lede = headline.takeaway(summary, results)
  lede = re.sub(r"(?<!\w)-(?=\d)", "&minus;", escape(lede))
  lede = f'<p class="lede">{lede}</p>' if lede else ""
  return document(title, when, lede, sections)


def document(
  title: str, when: str, lede: str, sections: Sequence[Section]
) -> str:
  """A whole page of sections; those without a body are left out.

  Args:
    title: Its heading, as text.
    when: When the run ended, as text; "" if that is not said.
    lede: HTML between the heading and the links.
    sections: In their order.
  """
  sections = [section for section in sections if section.body]
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
  """The links to the sections, which end the header, and the sections."""
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


def _results(summary: Mapping[str, object], results: Mapping[str, str]) -> str:
  rows = headline.rows(summary, results)
  parts = []
  if rows:
    cells = []
    for label, before, after, change, better in rows:
      colour = {True: " good", False: " bad", None: ""}[better]
      cells.append(
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="number">{markup.number(before)}</td>'
        f'<td class="number strong">{markup.number(after)}</td>'
        f'<td class="number{colour}">{markup.number(change)}</td></tr>'
      )
    parts.append(markup.table(("", "Before", "After", "Change"), cells))
  if summary:
    cells = [
      f'<tr><th scope="row"><code>{escape(key)}</code></th>'
      f'<td class="number">{escape(_value(value))}</td></tr>'
      for key, value in summary.items()
    ]
    table = markup.table(("Key", "Value"), cells)
    opened = "" if rows else " open"
    parts.append(
      f"<details{opened}><summary>All {len(cells)} numbers of the summary"
      f"</summary>{table}</details>"
    )
  return "".join(parts)


def _progress(stage: Stage, summary: Mapping[str, object]) -> tuple[str, str]:
  drawn = figures.policy_figures(stage.metrics, summary, stage.name)
  titles = [figure.title for figure in drawn]
  text = (
    "<p>The reward is what the policy was trained on. Success is measured "
    "independently of it: where the reward rises and success does not, the "
    "policy exploits the reward model.</p>"
  )
  if len(titles) < 3:
    text = ""
  text += _diagnostics(stage)
  title = f"{stage.title}: reward, success and KL"
  return title, (text + markup.figures(drawn, large=True)) if drawn else ""


def _diagnostics(stage: Stage) -> str:
  """What is wrong with the policy of a stage at its end, as a list."""
  found = diagnostics.of(stage.metrics, _evaluated(stage))
  items = "".join(f"<li>{escape(text)}</li>" for _, text in found)
  return f'<ul class="bad">{items}</ul>' if items else ""


def _evaluated(stage: Stage) -> int | None:
  """Responses of an evaluation of a policy; None if nothing says how many.

  Its first line has them. One that was written before there was such a metric
  has at most as many as were asked for.
  """
  for row in stage.metrics:
    noted = numbers.number(row.get("validation/responses"))
    if math.isfinite(noted):
      return int(noted)
  asked = stage.config.get("eval")
  rows = asked.get("rows") if isinstance(asked, Mapping) else None
  return rows if type(rows) is int else None


def _curves(stages: Sequence[Stage], policies: Sequence[Stage]) -> str:
  parts = []
  for stage in stages:
    drawn = stage in policies
    leave_out = figures.policy_metrics(stage.metrics) if drawn else ()
    first, rest = figures.stage_figures(stage.name, stage.metrics, leave_out)
    if not first:
      first, rest = rest, []
    if not first:
      continue
    parts.append(f"<h3>{escape(stage.title)}</h3>")
    parts.append(markup.figures(first))
    if rest:
      parts.append(
        f"<details><summary>{len(rest)} more</summary>"
        f"{markup.figures(rest)}</details>"
      )
  return "".join(parts)


def _scores(stages: Sequence[Stage]) -> str:
  for stage in stages:
    drawn = scores.reward_model_figures(stage.scores)
    if drawn:
      return "<p>On held-out rows.</p>" + markup.figures(drawn)
  return ""


def _verdicts(stages: Sequence[Stage], summary: Mapping[str, object]) -> str:
  return "".join(
    _noticed(s, verdicts.verdicts_html(s.verdicts, summary, s.name))
    for s in stages
  )


def _samples(stages: Sequence[Stage]) -> str:
  """Samples of the first stage that compares policy and anchor, or of any."""
  for stage in sorted(
    stages, key=lambda s: not any("policy" in row for row in s.samples)
  ):
    text = samples.samples_html(stage.samples)
    if text:
      return _noticed(stage, text)
  return ""


def _noticed(stage: Stage, text: str) -> str:
  """Samples of a stage below what is to be known before reading them."""
  if not (text and stage.notice):
    return text
  return f"<p><b>{escape(stage.notice)}</b></p>\n{text}"


def _costs(summary: Mapping[str, object], stages: Sequence[Stage]) -> str:
  titles = {stage.name: stage.title for stage in stages}
  return costs.totals(summary, titles) + "".join(
    costs.breakdown(
      stage.title,
      stage.metrics,
      numbers.number(summary.get(f"seconds.{stage.name}")),
    )
    for stage in stages
  )


def _configs(
  stages: Sequence[Stage], config: Mapping[str, object], command: str
) -> str:
  parts = []
  if command:
    parts.append(f'<pre class="block"><code>{escape(command)}</code></pre>')
  named = [("Resolved config", config)]
  named += [(f"Resolved config: {s.title}", s.config) for s in stages]
  for title, value in named:
    if value:
      text = json.dumps(value, indent=2, ensure_ascii=False)
      parts.append(
        f"<details><summary>{escape(title)}</summary>"
        f'<pre class="block"><code>{escape(text)}</code></pre></details>'
      )
  return "".join(parts)


def _value(value: object) -> str:
  x = numbers.number(value)
  if isinstance(value, float) and math.isfinite(x):
    return f"{x:.6g}"
  return value if isinstance(value, str) else json.dumps(value)
