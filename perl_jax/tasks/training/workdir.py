"""Claims a workdir for a config, and refuses one of another run."""

import contextlib
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from perl_jax import (
  buckets,
  checksums,
  disk,
  files,
  hosts,
  json_text,
  starting,
)
from perl_jax.tasks.initial import manifest, saved, sealed
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import changes, lock

CONFIG_FILE = "config.json"
# Config fields that were added after workdirs of this version were first
# written, with the value that does what was done before, or what gives that by
# the config of the stage: a workdir without the field goes on as it began.
ADDED: Mapping[str, Any] = {
  "base": "",
  "members": 1,
  "vary": "",
  "conversations": 0,
  "best": "reward",
  "data.ignore": [],
  "data.columns": "",
  "data.margin": 0.0,
  "data.threshold": "",
  "data.preview": 0,
  "data.pad_to_multiple_of": 8,
  "eval.loss_rows": 0,
  "probe_rows": 0,
  # The seed of a run was that of its folds.
  "data.split_seed": lambda stage: stage.get("seed", 0),
  "reward.timeout": 1800.0,
  "nonfinite": "stop",
  "nonfinite_limit": 10,
  "trackers": [],
  "tracking": {"project": "", "run": "", "samples": False},
  # Responses ended with their stop token, whatever a chat template writes then.
  "score_at": "turn",
}


def config_of(workdir: Path) -> dict[str, Any] | None:
  """The config of the run that a workdir belongs to; None if there is none.

  One that cannot be read is none: `preparing` says what is wrong with it.
  """
  return json_text.object_or_none(workdir / CONFIG_FILE)


def written_config(workdir: Path) -> dict[str, Any] | None:
  """The config of the run that a workdir belongs to, for who reads the run.

  Where config.json is gone, it is what the last checkpoint has noted, and a
  warning says so; None if there is none either.

  Raises:
    ValueError: config.json is damaged.
  """
  path = workdir / CONFIG_FILE
  if path.is_file():
    sealed.require(workdir, CONFIG_FILE)
    return json_text.read_object(path)
  found = saved.checkpoints(workdir)
  if not found:
    return None
  logging.warning(
    "%s is gone: what the checkpoint of step %d has noted of it is taken.",
    path,
    found[-1].step,
  )
  return found[-1].meta.get("config")


def require_same(config: shared.Config, workdir: str | Path) -> tuple[str, ...]:
  """Checks that a workdir is of this config, or of none; changes nothing.

  Returns:
    Lines "config.field: before -> now (effect)" of what differs and may.

  Raises:
    ValueError: It belongs to a run with another config, or is no directory.
  """
  mine = shared.as_written(config)
  return _refuse_other(Path(workdir).absolute(), mine).allowed


@contextlib.contextmanager
def preparing(config: shared.Config, workdir: str | Path) -> Iterator[Path]:
  """Claims a workdir for a config once everything in the block has worked.

  The block reads data and earlier stages, and may write into the workdir. If it
  fails, what was not there before is removed again, the workdir included (the
  next command would take a stale tokenizer); if it succeeds, config.json is
  written. Process 0 does all of that, while the others wait.

  Raises:
    ValueError: The workdir belongs to a run with another config (the fields
      that differ are listed; see `changes` for those that may), was written
      by another version, or is not shared by all hosts. Nothing is changed.
  """
  workdir = Path(workdir).absolute()
  mine = shared.as_written(config)
  reopened = _refuse_other(workdir, mine).reopened
  before = set(workdir.iterdir()) if workdir.exists() else None
  hosts.barrier("workdir looked at")
  undo = functools.partial(_remove_new, workdir, before)
  try:
    with hosts.undone_by_others(undo):
      with disk.writing("the run", workdir):
        hosts.on_primary(
          "workdir", lambda: workdir.mkdir(parents=True, exist_ok=True)
        )
        if buckets.is_apart(workdir):
          workdir.mkdir(parents=True, exist_ok=True)
      if not hosts.sees(workdir):
        raise ValueError(
          f"--workdir={workdir} was made by process 0 and is not there for"
          f" process {jax.process_index()}: it must lie on a file system that"
          " all hosts share, or in a bucket, --workdir=gs://BUCKET/PATH."
        )
      yield workdir
      hosts.barrier("prepared")  # all of them
  except BaseException:
    if hosts.is_primary():
      undo()
    raise

  def claim():
    # A stage with a summary counts as finished with the steps of its config.
    for summary in reopened:
      summary.unlink(missing_ok=True)
    files.write_json(workdir / CONFIG_FILE, mine)
    # The report shows it; a resumed run may have been started by another.
    command = starting.command_line()
    files.write_text(workdir / "command.txt", command + "\n")
    sealed.write(workdir)

  hosts.on_primary("claimed", claim)


def _remove_new(workdir: Path, before: set[Path] | None) -> None:
  if before is None:
    shutil.rmtree(workdir, ignore_errors=True)
    return
  for path in set(workdir.iterdir()) - before:
    if path.is_dir():
      if not _is_of_another(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink()


def _is_of_another(directory: Path) -> bool:
  """Whether a run of its own has begun there, or has been."""
  return any((directory / n).exists() for n in (CONFIG_FILE, lock.LOCK_FILE))


def _refuse_other(workdir: Path, mine: Mapping[str, Any]) -> changes.Review:
  """Refuses a config that the workdir cannot go on with; compares them."""
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file, not a directory.")
  path = workdir / CONFIG_FILE
  if not path.exists() and not saved.checkpoints(workdir):
    return changes.Review((), (), (), ())
  model = workdir / manifest.MODEL_FILE
  if model.is_file():
    described = json_text.read_object(model)
    manifest.require_version(model, described, f"--workdir={workdir}")
  written = json_text.read_object(path) if path.exists() else _noted(workdir)
  if not isinstance(written.get("task"), str):
    raise ValueError(
      f"{path} is not of a run, but of something else, such as a model of the"
      " Hugging Face hub: give another --workdir."
    )
  found = changes.review(complete(written, mine), mine, workdir)
  if found.refused:
    listed = "\n  ".join(found.refused)
    before = " ".join(found.flags)
    go_on = f" To go on as it began, add {before}." if before else ""
    raise ValueError(
      f"{workdir} belongs to a run with another config:\n  {listed}\n"
      "Give another --workdir, or remove this one to start afresh."
      f"{go_on}{_damaged(workdir)}"
      f"{_newer(found.refused, differences(written, mine))}"
    )
  if found.allowed:
    logging.info(
      "%s goes on with other settings: %s.", workdir, "; ".join(found.allowed)
    )
  return found


def _damaged(workdir: Path) -> str:
  """What to add where config.json has been changed since it was written."""
  fault = checksums.fault(workdir, only=CONFIG_FILE)
  return f" But {fault}: restore it, if nobody has edited it." if fault else ""


def _noted(workdir: Path) -> dict[str, Any]:
  """The config that the last checkpoint has noted, where config.json is gone.

  Raises:
    ValueError: It has noted none, which older versions did not.
  """
  last = saved.checkpoints(workdir)[-1]
  path = workdir / CONFIG_FILE
  if "config" not in last.meta:
    raise ValueError(
      f"{path} is gone, and the checkpoint of step {last.step} does not say"
      " what the config was: restore the file, give another --workdir, or"
      " remove this one to start afresh."
    )
  logging.warning(
    "%s is gone: the config is compared with what the checkpoint of step %d has"
    " noted, and the file is written anew.",
    path,
    last.step,
  )
  return dict(last.meta["config"])


def _newer(lines: Sequence[str], unread: Sequence[str]) -> str:
  """What to add to a command for fields that are newer than its workdir.

  Args:
    lines: How the configs differ, absent fields read as they were meant.
    unread: How they differ, absent fields as they are.
  """
  absent = {
    line.partition(": ")[0] for line in unread if ": '(absent)' -> " in line
  }
  fields = [line.partition(": ") for line in lines]
  flags = [
    f"--{field}={values.partition(' -> ')[0]}"
    for field, _, values in fields
    if field in absent and not values.startswith("'(absent)'")
  ]
  if not flags:
    return ""
  return (
    f" To go on with it: {' '.join(flags)}, which is what runs did before there"
    " were these fields."
  )


def complete(
  theirs: Mapping[str, Any],
  mine: Mapping[str, Any],
  meaning: Mapping[str, Any] | None = None,
  path: str = "",
  stage: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """An older config with the fields that were added since, as it meant them.

  Args:
    theirs: The config of a workdir.
    mine: A config of this version, which says what fields there are.
    meaning: What a field that is absent meant, by the end of its dotted name;
      `ADDED` if None.
    path: Dotted name of the part of the config.
    stage: The config that the part belongs to; None where it is whole.
  """
  meaning = ADDED if meaning is None else meaning
  found = dict(theirs)
  for key, value in mine.items():
    name = f"{path}.{key}" if path else key
    if isinstance(value, Mapping) and isinstance(theirs.get(key), Mapping):
      found[key] = complete(theirs[key], value, meaning, name, theirs)
    elif key not in theirs:
      # A pipeline has the fields of a stage below the stage's name.
      for end, meant in meaning.items():
        if f".{name}".endswith(f".{end}"):
          found[key] = meant(stage or theirs) if callable(meant) else meant
  return found


def differences(theirs: Any, mine: Any, path: str = "config") -> list[str]:
  """Lines "config.field: theirs -> mine" for each field that differs."""
  return [
    f"{path}.{name}: {before!r} -> {now!r}"
    for name, before, now in changes.differing(theirs, mine)
  ]
