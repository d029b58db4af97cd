"""Whether a reward model has been trained on the rows that a policy's was.

A policy that has learned to please one reward model exploits its errors; one
that was trained on the same rows makes many of the same errors, and would call
that better. So a judge should have seen other rows.

Rows are the same if their fingerprints in the checkpoints are, or if they were
read from the same place, unless they are of other folds of one division. Rows
that are generated are the same if their seed is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from perl_jax import buckets
from perl_jax.data.sources import registry
from perl_jax.tasks.initial import saved
from perl_jax.tasks.settings import paths, reward_functions
from perl_jax.tasks.training import changes
from perl_jax.tasks.training import workdir as workdir_lib

SAME, OTHER, UNKNOWN = "same", "other", "unknown"
_RATED = ("training rows (preferences)", "training rows (labelled)")
# What the folds of a file's rows follow from, beside its rows; of another copy,
# which may lack some, they are others too. How many of them are drawn, and how
# long they may be, says nothing of which they are.
_DIVISION = ("folds", "columns", "margin", "threshold")


class Part(NamedTuple):
  """The folds of a source's rows that a stage was trained on.

  Attributes:
    place: Name of the source, and what tells its rows from others: the seed of
      what is generated, else the path.
    division: What tells its folds from those of another division of it.
    folds: Numbers of the folds.
    workdir: Workdir of the stage.
  """

  place: tuple[str, str]
  division: str
  folds: frozenset[int]
  workdir: str

  def meets(self, other: "Part") -> bool:
    """Whether a row may be in both.

    Two divisions of a place share rows, and so do a directory and a file in it.
    """
    if self.place != other.place:
      (name, path), (other_name, other_path) = self.place, other.place
      above = (*PurePath(path).parents, *PurePath(other_path).parents)
      both = {PurePath(path), PurePath(other_path)}
      return name == other_name and not both.isdisjoint(above)
    return self.division != other.division or bool(self.folds & other.folds)


class Rated(NamedTuple):
  """The rated rows that a model learned from, itself or by its reward model.

  Attributes:
    rows: {fingerprint of rows: workdir that was trained on them}.
    unknown: Workdirs and models of which that is not known.
    parts: Where rows were read from.
  """

  rows: Mapping[str, str]
  unknown: tuple[str, ...]
  parts: tuple[Part, ...] = ()


def rated(workdir: str) -> Rated:
  """What a stage and all that it started from have learned from.

  Args:
    workdir: Workdir of a stage, or a model of others.
  """
  rows: dict[str, str] = {}
  parts: list[Part] = []
  unknown = []
  for place, config, found in _stages(workdir):
    if config is None or not found:
      unknown.append(place)
      continue
    digests = found[-1].meta.get(changes.ENTRY, {})
    names = [name for name in _RATED if name in digests]
    rows |= {digests[name]: place for name in names}
    if names or config.get("task") in ("reward", "dpo"):
      parts.append(_part(config, place))
  return Rated(rows, tuple(unknown), tuple(parts))


def rewarded_by(workdir: str) -> dict[str, str]:
  """{function: workdir} of what a stage and its starts were rewarded by.

  Args:
    workdir: Workdir of a stage, or a model of others.
  """
  found = {}
  for place, config, _ in _stages(workdir):
    reward = (config or {}).get("reward")
    named = reward.get("fn") if isinstance(reward, Mapping) else ""
    for term in reward_functions.terms_of(named or ""):
      found[function(term.name)] = place
  return found


def function(name: str) -> str:
  """The name of a function, with the absolute path of its file."""
  place, _, rest = name.rpartition(":")
  return f"{paths.absolute(place)}:{rest}" if place.endswith(".py") else name


def _stages(
  workdir: str,
) -> Iterator[tuple[str, Mapping[str, Any] | None, Sequence[Any]]]:
  """(place, config, checkpoints) of a stage and all that it started from."""
  done, left = set(), [str(workdir)]
  while left:
    place = left.pop(0)
    path = buckets.present(Path(paths.absolute(place)))
    if path in done:
      continue
    done.add(path)
    config, found = workdir_lib.config_of(path), saved.checkpoints(path)
    yield place, config, found
    if config is not None and found:
      left += _starts(config, path)


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


def _part(config: Mapping[str, Any], workdir: str) -> Part:
  """The rows of a source that a stage with this config was trained on."""
  data, seed = config.get("data", {}), config.get("seed")
  source = registry.describe().get(data.get("name"))
  if source is not None and not {"path", "data_dir"} & set(source.options):
    # Generated from the seed, and not divided into folds.
    place = data["name"], f"seed {seed}"
    return Part(place, "", frozenset([0]), workdir)
  path = paths.absolute(data["path"]) if data.get("path") else ""
  place = str(data.get("name")), path
  split_seed = data.get("split_seed", seed)  # of older stages their seed
  copy = paths.absolute(data["dir"]) if data.get("dir") else ""
  division = [split_seed, copy, *(data.get(name) for name in _DIVISION)]
  held_out = set() if _may_be_apart(data) else {data.get("fold")}
  trained = set(range(data.get("folds") or 1)) - held_out
  folds = frozenset(data.get("train_folds") or trained)
  return Part(place, json.dumps(division), folds, workdir)


def _may_be_apart(data: Mapping[str, Any]) -> bool:
  """Whether held-out rows may be in files of their own, and all folds learned.

  A directory may have such files, and need not be there any more.
  """
  path = str(data.get("path") or "")
  if data.get("validation_path") or path.startswith("hf://"):
    return True
  there = Path(paths.absolute(path))
  return path != "" and (there.is_dir() or there.suffix == "")


def compare(judge: Rated, judged: Rated) -> tuple[str, str]:
  """(`SAME`, `OTHER` or `UNKNOWN`, why) of a judge and who is judged.

  Args:
    judge: Rows that the reward model that judges has seen.
    judged: Rows by which the policy, or both that are compared, have learned.
  """
  common = [judged.rows[digest] for digest in judge.rows.keys() & judged.rows]
  common += [
    theirs.workdir
    for theirs in judged.parts
    if any(ours.meets(theirs) for ours in judge.parts)
  ]
  if common:
    return SAME, f"{min(common)} was trained on some of the same rows"
  known = judge.rows or judge.parts
  unknown = (*judged.unknown, *(() if known else judge.unknown))
  if unknown:
    return UNKNOWN, f"what {', '.join(unknown)} has learned from is not known"
  return OTHER, "nobody in question was trained on its rows"


def both(first: Rated, second: Rated) -> Rated:
  """The rows of two that are compared."""
  rows = dict(first.rows) | dict(second.rows)
  unknown = (*first.unknown, *second.unknown)
  return Rated(rows, unknown, (*first.parts, *second.parts))
