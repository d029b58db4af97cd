"""What a nat of KL buys: a policy's quality against how far it has moved.

Quality is what others than the reward say: a check such as gold, a judge's win
rate; the reward itself only where there is neither. Settings lie over each
other: a single reward model, an ensemble and the average of its weights, say.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from perl_jax.reporting import lines, markup, settings, svg, vocabulary

_KL, _X_LABEL = "validation/kl", "KL to the anchor (nats)"
_BETA = "beta"
# Stages that measure a policy once, and under which names.
_ONCE, _KL_ONCE = ("judge", "evaluate"), "policy.kl"
_WIN_RATE = "win_rate_ties_half"


def render(
  found: Sequence[settings.Setting],
  stages: Sequence[str],
  paths: Sequence[str] = (),
) -> str:
  """The figures: along training, and at the end of it across beta.

  A line is the mean over the seeds of a setting at each step, of the KL and of
  the metric; its band goes from the lowest to the highest seed.

  Args:
    found: The settings.
    stages: Names of the stages that may have a policy.
    paths: Dotted names of the fields that are paths, within a stage.
  """
  drawn = []
  for stage in stages:
    for name in names_of(found, stage):
      along = [
        line
        for colour, kind, setting in lines.styles(found)
        if (line := _along(setting, stage, name, colour, kind)) is not None
      ]
      label = vocabulary.label_of(name, stage)
      judge = vocabulary.judge_of(name)
      label += f", by {judge}" if judge else ""
      drawn.append(
        lines.figure(
          stage,
          name,
          along,
          _X_LABEL,
          kind="against-kl",
          title=label if stage in _ONCE else f"{label}, along training",
        )
      )
      across = list(_across(found, stage, name, paths))
      if across:
        drawn.append(
          lines.figure(
            stage,
            name,
            across,
            _X_LABEL,
            kind="across-beta",
            title=f"{label}, by beta"
            if stage in _ONCE
            else f"{label}, at the end, by beta",
          )
        )
  return markup.figures(drawn, large=True) if drawn else ""


def names_of(found: Sequence[settings.Setting], stage: str) -> list[str]:
  """Names of the metrics that are drawn: a check, a win rate, or the reward."""

  def has(name: str) -> bool:
    return any(_points(s, stage, name)[0].size for s in found)

  before = "policy." if stage in _ONCE else ""
  judged = _judged(found, stage) if stage in _ONCE else ["win_rate"]
  checks = (before + name for name in vocabulary.CHECKS)
  told = [*[name for name in checks if has(name)][:1], *filter(has, judged)]
  return told or [name for name in (f"{before}reward",) if has(name)]


def _judged(found: Sequence[settings.Setting], stage: str) -> list[str]:
  """Names of the win rates by all judges, as the task `judge` writes them."""
  names = settings.metric_names(found, stage)
  wanted = (n for n in names if n.rpartition(".")[2] == _WIN_RATE)
  return [name for name in wanted if vocabulary.judge_of(name)]


def _points(
  setting: settings.Setting, stage: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
  """(KL `[n]`, mean over seeds; values `[runs, n]`) at the steps with both."""
  keys = (_KL, f"validation/{name}")
  if stage in _ONCE:
    keys = (_KL_ONCE, name)
  steps, kl = setting.curve(stage, keys[0])
  at, values = setting.curve(stage, keys[1])
  both = np.intersect1d(steps, at)
  kl, values = kl[:, np.isin(steps, both)], values[:, np.isin(at, both)]
  kl = np.where(np.isfinite(values), kl, np.nan)
  good = np.isfinite(kl).any(axis=0)
  kl, values = kl[:, good], values[:, good]
  return (np.nanmean(kl, axis=0) if kl.size else np.array([])), values


def _along(
  setting: settings.Setting, stage: str, name: str, colour: str, kind: str
) -> svg.Line | None:
  kl, values = _points(setting, stage, name)
  if not kl.size:
    return None
  return lines.band(setting.label, kl, values, colour, kind)


def _across(
  found: Sequence[settings.Setting],
  stage: str,
  name: str,
  paths: Sequence[str],
) -> Iterator[svg.Line]:
  """A line for settings that differ in beta alone, with beta at each point."""
  groups: dict[str, dict[float, settings.Setting]] = {}
  differing = settings.differences(found, paths)
  betas = [field for field in differing if field.split(".")[-1] == _BETA]
  for setting in found:
    beta = [setting.value(field) for field in betas]
    if len(beta) != 1 or not isinstance(beta[0], int | float):
      continue
    group = settings.label_without(setting, betas, found, paths)
    groups.setdefault(group, {})[float(beta[0])] = setting
  number = 0
  for label, by_beta in groups.items():
    ends = []
    for beta in sorted(by_beta):
      kl, values = _points(by_beta[beta], stage, name)
      if kl.size:
        ends.append((beta, kl[-1], values[:, -1]))
    if len(ends) < 2:
      continue
    runs = max(len(values) for _, _, values in ends)
    stacked = np.full((runs, len(ends)), math.nan)
    for i, (_, _, values) in enumerate(ends):
      stacked[: len(values), i] = values
    colour, kind = lines.style(number)
    number += 1
    kls = np.array([kl for _, kl, _ in ends])
    marks = tuple(f"{beta:g}" for beta, _, _ in ends)
    yield lines.band(label, kls, stacked, colour, kind)._replace(marks=marks)
