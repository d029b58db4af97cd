"""Which checkpoint of a stage is measured, shipped and spoken of.

One rule for its summary, its export, the card of that and an evaluation: the
best one, unless it was chosen on the rows that it is then judged on. Its
numbers would flatter it; so the last one is taken, and of a reward model the
one that `report_checkpoint` names.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import checkpoint
from perl_jax.tasks.settings import paths
from perl_jax.tasks.training import workdir as workdir_lib

AUTO = "auto"


def checkpoint_of(
  workdir: str | os.PathLike,
  which: str,
  judged_on: Mapping[str, Any] | None = None,
) -> str:
  """The checkpoint of a stage that a field asks for, "best" or "last".

  Args:
    workdir: Workdir of the stage, or somebody else's model, which has one.
    which: The field's value: "best", "last", or "auto" for the rule above.
    judged_on: `config.data` of an evaluation; None if what counts are the
      numbers that the stage itself has measured.

  Raises:
    ValueError: The config of the stage is damaged.
  """
  if which != AUTO:
    return which
  config = workdir_lib.written_config(Path(workdir)) if workdir else None
  if config is None or "data" not in config:
    return "best"
  # A reward model says what its summary is of; other stages report the last.
  found, why = config.get("report_checkpoint", "last"), "its summary speaks of"
  if judged_on is not None and _held_out(judged_on) != _held_out(
    config["data"]
  ):
    found, why = "best", "was chosen on other rows than it is judged on"
  logging.info("%s: the %s checkpoint is taken, which %s.", workdir, found, why)
  return found


def steps_of(roles: Mapping[str, tuple[str, str]]) -> dict[str, int]:
  """Entries of a summary: the steps of the checkpoints that were measured.

  Args:
    roles: Workdir and "best" or "last" of each role, by its name in the
      summary; a workdir may be "" or somebody else's model, which has none.

  Returns:
    `ROLE.checkpoint_step` of every role that has checkpoints.
  """
  return {
    f"{role}.checkpoint_step": checkpoint.step_of(workdir, which)
    for role, (workdir, which) in roles.items()
    if workdir and (Path(workdir) / checkpoint.DIRECTORY).is_dir()
  }


def _held_out(data: Mapping[str, Any]) -> tuple[Any, ...]:
  """What says which rows are held out, spelled in one way.

  How many rows are drawn or trained on makes no other rows of them.
  """
  places = data.get("dir"), data.get("validation_path") or data.get("path")
  spelled = (paths.absolute(place) if place else "" for place in places)
  division = data.get("folds"), data.get("fold"), data.get("split_seed", 0)
  return data.get("name"), *division, *spelled
