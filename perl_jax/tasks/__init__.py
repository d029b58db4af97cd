"""What a user can ask for, in one table; all side effects live here.

A file is a command, a folder is what commands share, and no command imports
another.
"""

import contextlib
import dataclasses
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging

from perl_jax import buckets, names
from perl_jax.interop import packages
from perl_jax.reporting import trackers
from perl_jax.tasks.settings import config_files, paths, ranges, tracking


@dataclasses.dataclass(frozen=True)
class Task:
  """A command: `config.task`, and the module of that name.

  Attributes:
    name: Name of the task and of its module in this package.
    title: Heading of its section in a report; "" if it leaves nothing to show.
    result: Name of the model that it makes, in the table of results; "" if it
      makes none.
    trains: Role in its checkpoints that its config starts from, "policy" or
      "reward"; "" if it trains nothing. The module of a task that trains offers
      `stage(config, workdir, member)` and `programs(abstract)` in the place of
      `run`.
    data: Kind of records that it learns from. A reward model's is that of
      `config.loss`.
    keeps: Whether it trains nothing, and goes on all the same with what it has
      computed; see `evaluation.so_far`.
  """

  name: str
  title: str = ""
  result: str = ""
  trains: str = ""
  data: str = ""
  keeps: bool = False

  def module(self) -> ModuleType:
    """The command, imported on demand: a report needs no accelerator."""
    return importlib.import_module(f"perl_jax.tasks.{self.name}")


TASKS = {
  task.name: task
  for task in (
    Task("sft", "Supervised fine-tuning", "Anchor", "policy", "demonstrations"),
    Task("reward", "Reward model", "Reward model", "reward", "preferences"),
    Task("rl", "Reinforcement learning", "Policy", "policy", "prompts"),
    Task(
      "dpo",
      "Direct preference optimisation",
      "Policy (DPO)",
      "policy",
      "preferences",
    ),
    Task("evaluate", "Evaluation", "Evaluation", keeps=True),
    Task("judge", "Judges", "Judged policy", keeps=True),
    Task("generate", "Responses to prompts", keeps=True),
    Task("score", "Scores of rows", keeps=True),
    Task("pipeline"),
    Task("report"),
    Task("export"),
    Task("plan"),
  )
}
# Tasks that train, and those that leave something for a report.
TRAINING = tuple(task.name for task in TASKS.values() if task.trains)
SHOWN = tuple(task.name for task in TASKS.values() if task.title)
# Stages of a pipeline by their directories, and what a report shows of each.
STAGES = {name: TASKS[name] for name in SHOWN}
STAGES["judge_reward"] = dataclasses.replace(
  TASKS["reward"],
  title="Reward model that judges",
  result="Reward model that judges",
)


def get_config(text: str) -> Any:
  """The locked config of what `--config` takes, from Python.

  Args:
    text: A name such as "rl" or "rl:taskmaster_coffee", or the path of a file.

  Raises:
    ValueError: There is no such config, or it takes no such argument.
  """
  return config_files.load(text)


def run(config: Any, workdir: str | Path) -> dict[str, float]:
  """Runs `config.task` in `workdir` and returns its summary.

  A `config.base` that names a Python package becomes the path of its model, and
  fields that are None get a value; see `settings.defaults`. "~" at the start of
  a path is the user's home.

  Raises:
    ValueError: The task is unknown; the nearest name is given. Or a number of
      the config is out of range, or `config.base` names a package that has no
      model; see `settings.ranges` and `interop.packages`.
  """
  name = config.task
  if name not in TASKS:
    hint = names.did_you_mean(name, TASKS)
    raise ValueError(
      f"config.task={name!r}: choose one of {', '.join(TASKS)}.{hint}"
    )
  ranges.check(config)
  paths.check(config, str(workdir))
  if buckets.is_address(str(workdir)):
    with _kept_in_bucket(name, str(workdir)) as place:
      return _run(config, place)
  return _run(config, Path(workdir).expanduser())


@contextlib.contextmanager
def _kept_in_bucket(task: str, address: str) -> Iterator[Path]:
  """The workdir of an address as a directory here; see `buckets.mirrored`.

  Raises:
    ValueError: Another run has it, or the bucket cannot be used.
  """
  from perl_jax.hosts import signals
  from perl_jax.tasks.training import bucket_lock

  if task == "export":
    buckets.require_nothing(address)
    with _sent_whole_or_not(address) as place:
      yield place
    return
  if not _goes_on(task) and not TASKS[task].keeps:
    with buckets.mirrored(address, undisturbed=signals.deferred) as place:
      yield place
    return
  with (
    bucket_lock.held(address) as is_mine,
    buckets.mirrored(address, is_mine, signals.deferred) as place,
  ):
    yield place


@contextlib.contextmanager
def _sent_whole_or_not(address: str) -> Iterator[Path]:
  """The directory of an export that is sent to a bucket.

  Where one lies, the same command is refused: told to stop, it is sent whole,
  or, before that has begun, also removed here, and the same command makes it.
  """
  from perl_jax.hosts import signals

  @contextlib.contextmanager
  def sent_whole():
    try:
      with signals.deferred():
        yield
    except signals.Stopped as stopped:
      then = "Nothing is left to do."
      what = f", {address} is written"
      raise signals.Stopped(stopped.by, what, then=then) from None

  with buckets.mirrored(address, undisturbed=sent_whole) as place:
    try:
      yield place
    except signals.Stopped as stopped:
      shutil.rmtree(place, ignore_errors=True)
      raise signals.Stopped(stopped.by) from None


def _run(config: Any, workdir: Path) -> dict[str, float]:
  """Runs a task whose config has been checked, in a directory."""
  config, name = paths.localized(paths.expand(config)), config.task
  if "base" in config:
    with config.unlocked():
      config.base = packages.resolve(config.base)
  module = TASKS[name].module()
  if name in SHOWN:
    config = resolved(config, workdir)
  with tracked(config, workdir), live_report(config, workdir):
    if TASKS[name].trains:
      return _train(module, config, workdir)
    return module.run(config, workdir)


@contextlib.contextmanager
def tracked(config: Any, workdir: Path) -> Iterator[None]:
  """Sends what the block writes to the trackers of the config, if it has any.

  An empty block sends what a run that has finished could not send.
  """
  if "trackers" not in config:
    yield
    return
  from perl_jax import hosts

  asked = tracking.tracking_of(config, workdir, goes_on=_goes_on(config.task))
  if not hosts.is_primary():
    asked = None
  with trackers.opened(workdir, asked) as session:
    yield
    if session.pending:
      session.texts |= _report(workdir, samples=config.tracking.samples)


@contextlib.contextmanager
def live_report(config: Any, workdir: Path) -> Iterator[None]:
  """A run that trains has a report while it goes on; see `training.live`."""
  if not _goes_on(config.task):
    yield
    return
  from perl_jax.tasks.training import live

  def write():
    TASKS["report"].module().write_report(workdir)

  stage = bool(TASKS[config.task].trains)
  with live.reported(write, workdir if stage else None):
    yield


def _goes_on(task: str) -> bool:
  """Whether a task trains, itself or by its stages."""
  return bool(TASKS[task].trains) or task == "pipeline"


def _report(workdir: Path, *, samples: bool) -> dict[str, str]:
  """The report for a tracker, by its name; a run does not fail for its sake."""
  try:
    render = TASKS["report"].module().render
    text = render(workdir, samples=samples, command=False)
  except Exception as error:
    logging.warning("The trackers get no report.html: %s", error)
    return {}
  return {"report.html": text}


def _train(module: ModuleType, config: Any, workdir: Path) -> dict[str, float]:
  """Runs a task that trains, unless it has finished or another has the workdir.

  Raises:
    ValueError: Another run has it.
  """
  from perl_jax.tasks.dry_run import memory_check
  from perl_jax.tasks.settings import members as members_lib
  from perl_jax.tasks.training import finished, lock, members, together

  name, several = config.task, members_lib.asked(config)
  if several:
    done = members.summary_of(config, workdir)
  else:
    done = finished.summary_of(config, workdir, trains=True)
  if done is not None:
    logging.info("%s in %s has finished: nothing is left to do.", name, workdir)
    lock.clear(workdir)
    return done
  with lock.held(workdir):
    memory_check.check(config, TASKS[name].trains, module.programs)
    if several:
      return members.run(module.stage, config, workdir)
    return together.alone(module.stage(config, workdir))


def resolved(config: Any, workdir: str | Path) -> Any:
  """A stage's config with the values that None stands for, which are logged.

  They are those of the run that the workdir holds, if it holds one.
  """
  import jax

  from perl_jax.tasks.initial import origin
  from perl_jax.tasks.settings import defaults
  from perl_jax.tasks.training import workdir as workdir_lib

  config, found = defaults.resolve(
    config,
    origin.backbone(config),
    jax.default_backend(),
    workdir_lib.config_of(Path(workdir)),
  )
  if found:
    chosen = ", ".join(f"{name}={value}" for name, value in found.items())
    logging.info("%s: chosen for the backbone: %s", config.task, chosen)
  return config
