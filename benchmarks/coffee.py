"""Anchor and reward models of the coffee orders, for several benchmarks.

A stage that has finished in its workdir is not trained again, so that a
benchmark that was stopped continues where it was.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import reward as reward_config
from configs import sft as sft_config
from perl_jax import files
from perl_jax.tasks import pipeline


@dataclasses.dataclass(frozen=True)
class Settings:
  """How large the runs of a benchmark are.

  Attributes:
    workdir: Directory with the workdirs of all runs.
    anchor: Fields that differ from configs/sft.py.
    reward: Fields that differ from configs/reward.py.
    policy: Fields that differ from configs/rl.py and configs/dpo.py alike.
  """

  workdir: Path
  anchor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reward: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  policy: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
  """Sets dotted fields of a config; returns it locked."""
  config.update_from_flattened_dict(dict(fields))
  return config.lock()


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
  """Runs a stage unless it has finished; returns its summary."""
  return pipeline.run_stage(config, workdir)


def anchor(settings: Settings) -> Path:
  """Trains the anchor that all runs start from; returns its workdir."""
  workdir = settings.workdir / "anchor"
  run(changed(sft_config.get_config(), settings.anchor), workdir)
  return workdir


def reward(settings: Settings, name: str, **fields: Any) -> Path:
  """Trains a reward model from the anchor; returns its workdir.

  Args:
    settings: Sizes of the runs.
    name: Name of the workdir.
    **fields: Further fields of the config, dotted.
  """
  workdir = settings.workdir / name
  fields |= {"reward.init": str(anchor(settings))}
  config = changed(reward_config.get_config(), settings.reward | fields)
  run(config, workdir)
  return workdir


def curve(workdir: Path, *names: str) -> list[tuple[float, ...]]:
  """Reads validation metrics of a run, a tuple for each evaluation."""
  rows = files.read_jsonl(workdir / "metrics.jsonl")
  keys = [f"validation/{name}" for name in names]
  return [tuple(row[key] for key in keys) for row in rows if keys[0] in row]
