"""The report of several runs: what differs, and what came of it.

Curves of the same metric lie over each other, one for each setting, with the
spread over its seeds as a band.
"""

import itertools
from collections.abc import Collection, Sequence
from html import escape

import numpy as np

from perl_jax.reporting import (
  frontier,
  lines,
  markup,
  numbers,
  page,
  settings,
  vocabulary,
)

# Rows of the table of LoRA against full tuning that are ratios: what they cost.
_COSTS = ("trainable_parameters", "seconds", "peak_bytes")
# What those who train nothing say of a policy and of a reward model.
_JUDGED = ("win_rate_ties_half", "win_rate_length_controlled")
_OF_MODELS = {
  "policy": (*vocabulary.INDEPENDENT, "reward", "kl"),
  "reward_model": ("accuracy", "auroc"),
}
# Fields that go with the kind of tuning: each kind has its own best ones.
_OF_TUNING = ("tuning", "learning_rate", "lora")


def render(
  title: str, found: Sequence[settings.Setting], paths: Sequence[str]
) -> str:
  """Returns the HTML of the whole page.

  Args:
    title: Name of the comparison.
    found: At least one setting.
    paths: Dotted names of the fields that are paths, within a stage.
  """
  sections = [
    page.Section("Results", "What came out", _results(found)),
    page.Section("Differences", "What differs", _differences(found, paths)),
    page.Section("Tuning", "LoRA against full tuning", _tuning(found, paths)),
    page.Section(
      "Frontier",
      "What a nat of KL buys",
      frontier.render(found, _stages(found), paths),
    ),
    page.Section("Curves", "Curves of each stage", _curves(found)),
  ]
  count = sum(len(setting.runs) for setting in found)
  lede = f"<p>{count} runs of {len(found)} settings.</p>"
  return page.document(title, "", lede, sections)


def _stages(found: Sequence[settings.Setting]) -> list[str]:
  """Stages that have left metrics or a summary, in the order of the first."""
  return list(
    dict.fromkeys(
      stage.name
      for setting in found
      for run in setting.runs
      for stage in run.stages
      if stage.metrics
      or any(k.startswith(f"{stage.name}.") for k in run.summary)
    )
  )


def _keys(found: Sequence[settings.Setting]) -> list[str]:
  """Keys of the summaries that matter, the most telling first."""
  keys = {key for s in found for run in s.runs for key in run.summary}
  told = [key for key in keys if _is_result(key) and not _repeats(key, keys)]
  return sorted(told, key=lambda key: (vocabulary.rank_of(key), key))


def _is_result(key: str) -> bool:
  """Whether a key of a summary is what a stage has achieved."""
  stage, _, name = key.partition(".")
  if stage in ("seconds", "memory"):
    return False
  if name.endswith(("_low_after", "_high_after")):
    return False  # ends of an interval
  if name.endswith("_after") or name in ("kl", "trainable_parameters"):
    return True
  of, _, last = name.rpartition(".")
  if of:  # of a judge, or of one of several models
    wanted = _JUDGED if of.startswith("by.") else _OF_MODELS.get(of, ())
    return last in wanted
  metric = vocabulary.row_of(key)
  return metric.main and metric.name.split(".")[-1] == name


def _repeats(key: str, keys: Collection[str]) -> bool:
  """Whether an evaluation has measured again what a stage says of itself."""
  stage, *model, name = key.split(".")
  if stage != "evaluate" or not model:
    return False
  if model == ["reward_model"]:
    return f"reward.{name}" in keys
  measured = "kl" if name == "kl" else f"{name}_after"
  return any(k.split(".")[1:] == [measured] for k in keys)


def spread(key: str, values: np.ndarray) -> str:
  """Mean and sample standard deviation as text: "63.7% ± 1.9%"."""
  if not len(values):
    return ""
  text = _number(key, float(values.mean()))
  if len(values) > 1 and np.ptp(values):
    text += f" ± {_number(key, float(values.std(ddof=1)))}"
  return text


def _measured(key: str, setting: settings.Setting) -> str:
  """Mean and deviation of a setting; of a single run its own interval."""
  values = setting.values(key)
  ends = [setting.values(f"{key}{end}") for end in ("_low", "_high")]
  text = spread(key, values)
  if len(values) != 1 or not all(map(len, ends)):
    return text
  low, high = (_number(key, float(end[0])) for end in ends)
  return f"{text} ({low} to {high})"


def _number(key: str, value: float) -> str:
  metric = vocabulary.row_of(key)
  if metric.unit == "bytes":
    return numbers.size(value)
  if metric.unit == "s":
    return numbers.duration(value)
  if metric.name.endswith("parameters"):
    return f"{value:,.0f}"
  return numbers.show(key, value)


def _results(found: Sequence[settings.Setting]) -> str:
  keys = [*_keys(found), *_cost_keys(found)]
  rows = []
  for key in keys:
    cells = "".join(
      f'<td class="number">{escape(_measured(key, s))}</td>' for s in found
    )
    name = f"{_stage_of(key)}: {_name(key)}"
    rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
  if not rows:
    return ""
  header = ["", *(f"{s.label} ({len(s.runs)})" for s in found)]
  note = (
    "<p>Means over the runs of a setting, whose number is in brackets, and"
    " their standard deviation; of a single run its 95% interval, where it has"
    " one.</p>"
  )
  return note + markup.table([escape(text) for text in header], rows)


def _cost_keys(found: Sequence[settings.Setting]) -> list[str]:
  keys = {key for s in found for run in s.runs for key in run.summary}
  return sorted(k for k in keys if k.split(".")[0] in ("seconds", "memory"))


def _stage_of(key: str) -> str:
  stage, _, rest = key.partition(".")
  return rest if stage in ("seconds", "memory") else stage


def _differences(
  found: Sequence[settings.Setting], paths: Sequence[str]
) -> str:
  names = settings.differences(found, paths)
  rows = []
  for name in names:
    cells = "".join(
      f'<td class="number"><code>{escape(_shown(s.value(name)))}</code></td>'
      for s in found
    )
    rows.append(
      f'<tr><th scope="row"><code>{escape(name)}</code></th>{cells}</tr>'
    )
  seeds = "; ".join(
    f"{s.label}: "
    + ", ".join(
      f"{run.path} (seed {run.config.get(settings.SEED, '?')})"
      for run in s.runs
    )
    for s in found
  )
  text = f'<p class="note">{escape(seeds)}</p>'
  if not rows:
    return text + "<p>The configs differ in nothing but seeds and paths.</p>"
  header = [escape(text) for text in ("", *(s.label for s in found))]
  return markup.table(header, rows) + text


def _shown(value: object) -> str:
  return "" if value is None else str(value)


def _tuning(found: Sequence[settings.Setting], paths: Sequence[str]) -> str:
  """A table for each pair of settings that differ in the kind of tuning."""
  parts = []
  for lora, full in itertools.product(found, found):
    stage = _compared(lora, full, paths)
    if not stage:
      continue
    rows = []
    for key in _keys([lora, full]):
      a, b = lora.values(key), full.values(key)
      if not len(a) or not len(b) or _stage_of(key) != stage:
        continue
      if key.endswith(_COSTS):
        continue
      rows.append(_pair(key, a, b, _change(key, float(a.mean() - b.mean()))))
    for name in _COSTS:
      key = {
        "seconds": f"seconds.{stage}",
        "peak_bytes": f"memory.{stage}",
      }.get(name, f"{stage}.{name}")
      a, b = lora.values(key), full.values(key)
      if len(a) and len(b) and b.mean():
        rows.append(_pair(key, a, b, f"{100 * a.mean() / b.mean():.1f}%"))
    if rows:
      header = ("", lora.label, full.label, "LoRA - full, or LoRA / full")
      parts.append(markup.table([escape(text) for text in header], rows))
  return "".join(parts)


def _name(key: str) -> str:
  """Label of a key; times and sizes have their unit beside the number."""
  has_unit = vocabulary.row_of(key).unit in ("s", "bytes")
  label = vocabulary.label_of(key, unit=not has_unit)
  judge = vocabulary.judge_of(key)
  return f"{label}, by {judge}" if judge else label


def _change(key: str, by: float) -> str:
  if vocabulary.row_of(key).percent:
    return f"{100 * by:+.1f} points"
  return ("+" if by > 0 else "") + _number(key, by)


def _pair(key: str, a: np.ndarray, b: np.ndarray, change: str) -> str:
  return (
    f'<tr><th scope="row">{escape(_name(key))}</th>'
    f'<td class="number">{escape(spread(key, a))}</td>'
    f'<td class="number">{escape(spread(key, b))}</td>'
    f'<td class="number strong">{markup.number(change)}</td></tr>'
  )


def _compared(
  lora: settings.Setting, full: settings.Setting, paths: Sequence[str]
) -> str:
  """The stage that one tunes with LoRA and the other whole; "" if none.

  They have to be alike in all that does not go with the kind of tuning.
  """
  names = settings.differences([lora, full], paths)
  tuned = [name for name in names if name.split(".")[-1] == "tuning"]
  if not tuned or any(
    lora.value(name) != "lora" or full.value(name) != "full" for name in tuned
  ):
    return ""
  others = [
    name for name in names if not set(name.split(".")) & set(_OF_TUNING)
  ]
  if others:
    return ""
  stage = tuned[-1].rpartition(".")[0]
  if stage == "policy":  # of which this is a judgement, or an evaluation
    return str(lora.value("task"))
  return stage or str(lora.value("task") or _stages([lora])[-1])


def _curves(found: Sequence[settings.Setting]) -> str:
  parts = []
  for stage in _stages(found):
    drawn = []
    for key in _main_metrics(found, stage):
      shown = []
      for colour, kind, setting in lines.styles(found):
        steps, values = setting.curve(stage, key)
        if len(steps) < 2 or not np.isfinite(values).any():
          continue
        shown.append(lines.band(setting.label, steps, values, colour, kind))
      if shown:
        drawn.append(lines.figure(stage, key, shown, "step"))
    if drawn:
      parts.append(f"<h3>{escape(stage.upper())}</h3>{markup.figures(drawn)}")
  return "".join(parts)


def _main_metrics(found: Sequence[settings.Setting], stage: str) -> list[str]:
  """Keys of the metrics that are shown at once, validation before training."""
  keys = {
    key
    for key in settings.metric_names(found, stage)
    if "/" in key and key.split("/")[0] in vocabulary.COLOURS
  }
  keys = {
    key for key in keys
    if (metric := vocabulary.row_of(key, stage)).main
    and metric.name.split(".")[-1] == key.split("/")[-1]
  }  # fmt: skip
  validated = {key.split("/")[-1] for key in keys if key[0] == "v"}
  kept = [k for k in keys if k[0] == "v" or k.split("/")[-1] not in validated]
  return sorted(kept, key=lambda key: (vocabulary.rank_of(key), key))
