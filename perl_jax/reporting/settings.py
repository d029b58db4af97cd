"""Runs that are compared, in settings of runs that differ in the seed.

A setting is what a table has a row, and a figure a curve, for; its runs are
repetitions, and their spread is shown with it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.reporting import figures, numbers, page

SEED = "seed"


class Run(NamedTuple):
  """A run to be compared.

  Attributes:
    path: Its workdir, as it was given.
    config: Values of its resolved config by dotted name.
    stages: What its stages have written.
    summary: Flat summary of all stages.
    label: Setting that it was given for; "" to go by its config.
  """

  path: str
  config: Mapping[str, object]
  stages: Sequence[page.Stage]
  summary: Mapping[str, object]
  label: str = ""


@dataclasses.dataclass
class Setting:
  """Runs that are repetitions of one another.

  Attributes:
    label: Its name in legends and tables.
    runs: At least one.
  """

  label: str
  runs: list[Run]

  def values(self, key: str) -> np.ndarray:
    """Values of a key of the summary, `[n]`, of the runs that have one."""
    found = [numbers.number(run.summary.get(key)) for run in self.runs]
    return np.array([value for value in found if np.isfinite(value)])

  def value(self, name: str) -> object:
    """A field of the config, as its first run has it; None without it."""
    return self.runs[0].config.get(name)

  def curve(self, stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps `[n]`, values `[runs, n]`) of a metric.

    The steps are those at which any run has the metric; nan where one has not.
    """
    series = [
      dict(zip(*figures.series(rows.metrics, key), strict=True))
      for run in self.runs
      for rows in run.stages
      if rows.name == stage
    ]
    steps = sorted({step for found in series for step in found})
    rows = [[found.get(step, np.nan) for step in steps] for found in series]
    return np.array(steps), np.array(rows).reshape(len(series), len(steps))


def flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
  """A nested config as values by dotted name; sequences become tuples."""
  found: dict[str, object] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = tuple(value) if isinstance(value, list) else value
  return found


def gather(runs: Iterable[Run], paths: Sequence[str]) -> list[Setting]:
  """Settings of some runs, in the order of their first run.

  Runs that were given with one label are one setting. So are runs without a
  label whose configs are equal but for the seed; of paths the last part
  counts, as `seed_0/sft` and `seed_1/sft` are the same stage of two seeds. Two
  with the same seed are not repetitions.

  Args:
    runs: The runs.
    paths: Dotted names of the fields that are paths, within a stage.
  """
  found: dict[object, list[Run]] = {}
  for run in runs:
    key: object = run.label or _key(run, paths)
    seeds = [other.config.get(SEED) for other in found.get(key, ())]
    if not run.label and run.config.get(SEED) in seeds:
      key = run.path
    found.setdefault(key, []).append(run)
  settings = [Setting("", group) for group in found.values()]
  names = differences(settings, paths)
  for setting in settings:
    setting.label = setting.runs[0].label or _label(setting, names, settings)
  return settings


def differences(
  settings: Sequence[Setting], paths: Sequence[str] = ()
) -> list[str]:
  """Fields in which settings differ, in the order of the configs.

  A path counts as in `gather`.
  """
  first = dict.fromkeys(
    name for setting in settings for name in setting.runs[0].config
  )
  return [
    name
    for name in first
    if name != SEED
    and len({_plain(name, s.value(name), paths) for s in settings}) > 1
  ]


def metric_names(settings: Iterable[Setting], stage: str) -> list[str]:
  """Keys of all rows of metrics of a stage, in the order of their first row.

  Args:
    settings: Settings whose runs are read.
    stage: Name of the stage, such as "rl".
  """
  return list(
    dict.fromkeys(
      name
      for setting in settings
      for run in setting.runs
      for rows in run.stages
      if rows.name == stage
      for row in rows.metrics
      for name in row
    )
  )


def label_without(
  setting: Setting,
  fields: Sequence[str],
  settings: Sequence[Setting],
  paths: Sequence[str] = (),
) -> str:
  """What sets a setting apart but for some fields; "" if nothing does.

  Args:
    setting: One of `settings`.
    fields: The fields that do not count.
    settings: Those that it is set apart from.
    paths: Dotted names of the fields that are paths, within a stage.
  """
  told = differences(settings, paths)
  names = [name for name in told if name not in fields]
  return ", ".join(
    f"{name.split('.')[-1]} {setting.value(name)}" for name in names
  )


def _key(run: Run, paths: Sequence[str]) -> tuple[object, ...]:
  return tuple(
    (name, _plain(name, value, paths))
    for name, value in sorted(run.config.items())
    if name != SEED
  )


def _plain(name: str, value: object, paths: Sequence[str]) -> str:
  """A value as text; of a path the last part."""
  is_path = any(name == path or name.endswith(f".{path}") for path in paths)
  if is_path and isinstance(value, str):
    return value.rstrip("/").rpartition("/")[2]
  return repr(value)


def _label(
  setting: Setting, names: Sequence[str], settings: Sequence[Setting]
) -> str:
  """The name of a directory, or what sets the setting apart from the others."""
  told = [f"{name.split('.')[-1]} {setting.value(name)}" for name in names]
  same = [[s.value(name) for name in names] for s in settings]
  mine = [setting.value(name) for name in names]
  if 0 < len(told) <= 3 and same.count(mine) == 1:
    return ", ".join(told)
  path = setting.runs[0].path.rstrip("/")
  return path.rpartition("/")[2] or path
