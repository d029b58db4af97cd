"""Which experiment trackers a run is sent to: `config.trackers`."""

import sys
from pathlib import Path

from perl_jax import names
from perl_jax.reporting import trackers
from perl_jax.tasks.settings import paths, shared


def tracking_of(
  config: shared.Config, workdir: Path, *, goes_on: bool
) -> trackers.Tracking | None:
  """What the fields `trackers` and `tracking` ask for; None for no tracker.

  A run is called as its workdir if `tracking.run` is "". What stands before the
  last "/" of its name is its group: the pipeline's name, for its stages, or the
  run's, for its members.

  Args:
    config: Config of the run.
    workdir: Its workdir.
    goes_on: See `trackers.Tracking`.

  Raises:
    ValueError: A tracker is unknown, or its package is not installed; names the
      command that installs it.
  """
  asked = tuple(dict.fromkeys(config.trackers))
  for name in asked:
    if name not in trackers.CLIENTS:
      hint = names.did_you_mean(name, trackers.CLIENTS)
      raise ValueError(
        f"config.trackers={config.trackers!r}: there is no tracker {name!r}."
        f"{hint} Known: {', '.join(trackers.CLIENTS)}."
      )
  missing = trackers.missing(asked)
  if missing:
    packages = " ".join(trackers.PACKAGES[name] for name in missing)
    raise ValueError(
      f"config.trackers={config.trackers!r}: {', '.join(missing)} is not"
      f" installed. Run\n  {sys.executable} -m pip install {packages}\nor leave"
      " it out: the workdir has all metrics too."
    )
  if not asked:
    return None
  run = run_name(config, workdir)
  return trackers.Tracking(
    names=asked,
    project=config.tracking.project,
    run=run,
    group=run.rpartition("/")[0],
    task=config.task,
    samples=config.tracking.samples,
    goes_on=goes_on,
  )


def run_name(config: shared.Config, workdir: Path) -> str:
  """The name of a run in its trackers."""
  return config.tracking.run or paths.name_of(workdir)
