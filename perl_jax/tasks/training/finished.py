"""Whether the run of a config has finished, and with what."""

from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import checkpoint as checkpoint_lib
from perl_jax import json_text
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import workdir as workdir_lib

SUMMARY = sealed.SUMMARY


def summary_of(
  config: shared.Config, workdir: str | Path, *, trains: bool
) -> dict[str, Any] | None:
  """The summary of a finished run of this config; None if there is none.

  Nothing in the workdir is changed. A summary is written last of all; where the
  checkpoint of the last step is not there in spite of one, the files have been
  changed since, and the run is not finished.

  Args:
    config: Config of the run, without None in it.
    workdir: Workdir of the run.
    trains: Whether it leaves checkpoints.

  Raises:
    ValueError: The workdir belongs to a run with another config.
  """
  path = Path(workdir).absolute() / SUMMARY
  if not path.is_file():
    return None
  workdir_lib.require_same(config, path.parent)
  written = workdir_lib.config_of(path.parent)
  if not written:
    logging.warning(
      "%s is there, and %s, which says what it is of, is not: the run is not"
      " taken as finished.",
      path,
      path.with_name(workdir_lib.CONFIG_FILE),
    )
    return None
  if trains and written.get("steps") != config.steps:
    return None
  last = path.parent / checkpoint_lib.DIRECTORY
  if trains and not (last / str(config.steps)).is_dir():
    logging.warning(
      "%s is there, and %s/%d, the checkpoint of its last step, is not: the run"
      " goes on from what is left.",
      path,
      last,
      config.steps,
    )
    return None
  sealed.require(path.parent, SUMMARY)
  return json_text.read_object(path)
