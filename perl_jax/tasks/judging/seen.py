"""Whether a reward model has been trained on the rows that a policy's was.

A policy that has learned to please one reward model exploits its errors; one
that was trained on the same rows makes many of the same errors, and would call
that better. So a judge should have seen other rows.

Rows are the same if their fingerprints in the checkpoints are, or if they were
read from the same place with the same seed, in the same fold.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from perl_jax import buckets
from perl_jax.tasks.initial import saved
from perl_jax.tasks.settings import paths
from perl_jax.tasks.training import changes
from perl_jax.tasks.training import workdir as workdir_lib

SAME, OTHER, UNKNOWN = "same", "other", "unknown"
_RATED = ("training rows (preferences)", "training rows (labelled)")
# What says which rows a source gives; not how many of them, or their tokens.
_PLACE = ("name", "folds", "columns", "margin", "threshold")
_PATHS = ("dir", "path", "validation_path")


class Rated(NamedTuple):
  """The rated rows that a model learned from, itself or by its reward model.

  Attributes:
    rows: {what tells the rows from others: workdir that was trained on them}.
    unknown: Workdirs and models of which that is not known.
  """

  rows: Mapping[str, str]
  unknown: tuple[str, ...]


def rated(workdir: str) -> Rated:
  """What a stage and all that it started from have learned from.

  Args:
    workdir: Workdir of a stage, or a model of others.
  """
  rows: dict[str, str] = {}
  unknown, done, left = [], set(), [str(workdir)]
  while left:
    place = left.pop(0)
    path = buckets.present(Path(paths.absolute(place)))
    if path in done:
      continue
    done.add(path)
    config = workdir_lib.config_of(path)
    found = saved.checkpoints(path)
    if config is None or not found:
      unknown.append(place)
      continue
    digests = found[-1].meta.get(changes.ENTRY, {})
    names = [name for name in _RATED if name in digests]
    rows |= {digests[name]: place for name in names}
    if names or config.get("task") in ("reward", "dpo"):
      rows |= dict.fromkeys(_described(config), place)
    left += _starts(config, path)
  return Rated(rows, tuple(unknown))


def _starts(config: Mapping[str, Any], workdir: Path) -> list[str]:
  """What a stage started from, and its reward model.

  A relative path begins where the command was started; where there is nothing
  from here, the workdir is looked for beside this one.
  """
  found = []
  for role in ("policy", "reward"):
    section = config.get(role)
    init = section.get("init") if isinstance(section, Mapping) else ""
    if isinstance(init, str) and init:
      beside = workdir.parent / Path(init).name
      near = not Path(paths.absolute(init)).exists() and beside.is_dir()
      found.append(str(beside) if near else init)
  return found


def _described(config: Mapping[str, Any]) -> list[str]:
  """What tells the rows that it was trained on from others, by fold."""
  data = config.get("data", {})
  told: dict[str, Any] = {name: data.get(name) for name in _PLACE}
  told |= {
    name: paths.absolute(data[name]) for name in _PATHS if data.get(name)
  }
  told["seed"] = config.get("seed")
  held_out = set() if data.get("validation_path") else {data.get("fold")}
  trained = set(range(data.get("folds") or 1)) - held_out
  return [
    json.dumps(told | {"fold": fold}, sort_keys=True)
    for fold in data.get("train_folds") or trained
  ]


def compare(judge: Rated, judged: Rated) -> tuple[str, str]:
  """(`SAME`, `OTHER` or `UNKNOWN`, why) of a judge and who is judged.

  Args:
    judge: Rows that the reward model that judges has seen.
    judged: Rows by which the policy, or both that are compared, have learned.
  """
  common = sorted(set(judge.rows) & set(judged.rows))
  if common:
    return (
      SAME,
      f"{judged.rows[common[0]]} was trained on some of the same rows",
    )
  unknown = (*judged.unknown, *(judge.unknown if not judge.rows else ()))
  if unknown:
    return UNKNOWN, f"what {', '.join(unknown)} has learned from is not known"
  return OTHER, "nobody in question was trained on its rows"


def both(first: Rated, second: Rated) -> Rated:
  """The rows of two that are compared."""
  rows = dict(first.rows) | dict(second.rows)
  return Rated(rows, (*first.unknown, *second.unknown))
