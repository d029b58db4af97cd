"""sft -> reward -> rl -> evaluate -> judge -> report, in one run and workdir.

Each stage runs in `workdir/STAGE` as it would by its own command, taking the
earlier ones by their workdirs. A finished stage is not run again, so that a
killed pipeline goes on where it was. A config without `sft` starts the others
from `config.base`, a model that is tuned already. One with `judge` has the
policy judged, and `judge_reward` trains a reward model for that on other rows.
"""

from collections.abc import Mapping
from pathlib import Path

from absl import logging

from perl_jax import buckets, files, hosts, tasks
from perl_jax.data.sources import registry
from perl_jax.hosts import signals
from perl_jax.reporting import conversations, terminal
from perl_jax.tasks.settings import (
  judge,
  members,
  reward_functions,
  shared,
  tracking,
)
from perl_jax.tasks.training import finished, lock
from perl_jax.tasks.training import workdir as workdir_lib

STAGES = ("sft", "reward", "rl", "evaluate", "judge_reward", "judge")
INITS = {
  "sft": {},
  "reward": {"reward": "sft"},
  "rl": {"policy": "sft", "reward": "reward"},
  "evaluate": {"policy": "rl", "reward": "reward"},
  "judge_reward": {"reward": "sft"},
  "judge": {"policy": "rl"},
}


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Runs all stages and writes summary.json and report.html."""
  stages = [name for name in STAGES if name in config]
  if "sft" not in stages and not config.base:
    raise ValueError(
      "config.base is empty, and there is no SFT to make a model: give the path"
      " of a checkpoint, --config.base=PATH."
    )
  workdir = Path(workdir).absolute()
  configs = {name: stage_config(config, name, workdir) for name in stages}
  for name, stage in configs.items():
    members.refuse(stage, f"config.{name}")
  _require_other_rows(config)
  done = finished_run(config, configs, workdir)
  if done is not None:
    logging.info("pipeline in %s has finished: nothing is left.", workdir)
    for name, stage in configs.items():
      with tasks.tracked(stage, workdir / name):
        pass  # sends what is missing
    lock.clear(workdir)
    return done
  with lock.held(workdir):
    return run_stages(config, configs, workdir)


def run_stages(
  config: shared.Config, configs: Mapping[str, shared.Config], workdir: Path
) -> dict[str, float]:
  """Runs what has not finished, and writes report.html and summary.json."""
  with workdir_lib.preparing(config, workdir):
    pass
  stages, summary = list(configs), {}
  for name in stages:
    signals.stop_if_told()
    buckets.renew(workdir)  # the stages before
    found = run_stage(configs[name], workdir / name)
    summary |= flat(name, found)
  summary["seconds.total"] = sum(
    v for k, v in summary.items() if k.startswith("seconds.")
  )
  if not hosts.is_primary():
    return summary
  report = tasks.TASKS["report"].module().write_report(workdir, summary)
  logging.info("report: %s", report)
  files.write_json(workdir / finished.SUMMARY, summary)  # the last of all
  show_conversations(config, workdir / "evaluate")
  places = {name: workdir / name for name in ("report.html", "summary.json")}
  terminal.achieved_table(
    summary,
    places | {name: workdir / name for name in stages},
    results={name: tasks.STAGES[name].result for name in stages},
  )
  return summary


def show_conversations(config: shared.Config, evaluated: Path) -> None:
  """Prints what anchor and policy said to the first held-out prompts.

  Args:
    config: Config of the run; `config.conversations` says how many.
    evaluated: Workdir of the evaluation.
  """
  if not config.conversations:
    return
  rows = files.read_jsonl(evaluated / "samples.jsonl")
  source = registry.describe()[config.evaluate.data.name]
  conversations.show(rows[: config.conversations], notice=source.notice)


def stage_config(
  config: shared.Config, name: str, workdir: Path
) -> shared.Config:
  """The config of one stage: its own, with the run's data and seed in it.

  An empty `config.base`, or field of `config.data`, leaves the stage's own.

  Raises:
    ValueError: A stage has another value for what the pipeline sets.
  """
  stage = config[name].copy_and_resolve_references()
  _require_one_value(config, name, stage)
  with stage.unlocked():
    stage.seed = config.seed
    if config.trackers:
      stage.trackers = config.trackers
      stage.tracking = config.tracking.copy_and_resolve_references()
      stage.tracking.run = f"{tracking.run_name(config, workdir)}/{name}"
    if config.base:
      stage.base = config.base
    for field, value in config.data.items():
      if value:
        stage.data[field] = value
    for role, earlier in INITS[name].items():
      if earlier in config:
        stage[role].init = str(workdir / earlier)
    if name == "judge" and "judge_reward" in config:
      own = reward_functions.names_of(
        stage.judges, "config.judge.judges", judge.EXAMPLE
      )
      stage.judges = repr((*own, f"reward:{workdir / 'judge_reward'}"))
  return stage.lock()


def _require_one_value(
  config: shared.Config, name: str, stage: shared.Config
) -> None:
  """Checks that a stage sets nothing that the pipeline sets otherwise."""
  both = {"seed": (stage.seed, config.seed), "base": (stage.base, config.base)}
  for field, value in config.data.items():
    if field != "name":
      both[f"data.{field}"] = stage.data.get(field), value
  for field, (mine, other) in both.items():
    if field == "seed":
      differ = mine not in (0, other)  # 0 is a stage's own
    else:
      differ = bool(mine and other and mine != other)
    if differ:
      raise ValueError(
        f"config.{name}.{field}={mine!r}, and config.{field}={other!r} is for"
        " all stages of the pipeline. Set one of the two, or run the stages by"
        " their own commands."
      )
  for role, earlier in INITS[name].items():
    if earlier in config and stage[role].init:
      raise ValueError(
        f"config.{name}.{role}.init={stage[role].init!r}: in a pipeline that is"
        f" what its stage {earlier!r} has made. Leave it out, or run the stages"
        " by their own commands."
      )


def _require_other_rows(config: shared.Config) -> None:
  """Checks that the reward model that judges sees rows of its own.

  The judge would refuse it as well, after all training.

  Raises:
    ValueError: It shares folds with the one that the policy learns from, or
      there is no stage that asks it.
  """
  if "judge_reward" not in config:
    return
  if "judge" not in config:
    raise ValueError(
      "config.judge_reward is a reward model for config.judge to ask, which"
      " this config has not: add configs/judge.py as its `judge`."
    )
  learns, judges = (
    set(data.train_folds or range(data.folds)) - {data.fold}
    for data in (config.reward.data, config.judge_reward.data)
  )
  both = sorted(learns & judges)
  if both:
    raise ValueError(
      f"config.judge_reward.data.train_folds has {both} in common with"
      " config.reward.data.train_folds: a judge that has seen the rows by which"
      " the policy learns makes the same errors. Give each its own."
    )


def run_stage(config: shared.Config, workdir: Path) -> dict[str, float]:
  """Runs a stage, or reads what it achieved if it has finished.

  An evaluation looks itself whether it is one of the same models.
  """
  done = None
  if tasks.TASKS[config.task].trains:
    done = finished_stage(config, workdir)
  if done is not None:
    logging.info("%s in %s has finished.", config.task, workdir)
    lock.clear(workdir)
    with tasks.tracked(config, workdir):
      return done  # sends what is missing
  logging.info("stage %s in %s", config.task, workdir)
  return tasks.run(config, workdir)


def finished_stage(
  config: shared.Config, workdir: Path
) -> dict[str, float] | None:
  """What a stage has achieved; None if it has not finished."""
  if not (workdir / finished.SUMMARY).is_file():
    return None
  trains = bool(tasks.TASKS[config.task].trains)
  resolved = tasks.resolved(config, workdir)
  return finished.summary_of(resolved, workdir, trains=trains)


def finished_run(
  config: shared.Config, configs: Mapping[str, shared.Config], workdir: Path
) -> dict[str, float] | None:
  """The summary of the whole run; None if anything of it is missing."""
  done = finished.summary_of(config, workdir, trains=False)
  if done is None or not (workdir / "report.html").is_file():
    return None
  for name, stage in configs.items():
    if finished_stage(stage, workdir / name) is None:
      return None
  return done


def flat(name: str, found: dict[str, float]) -> dict[str, float]:
  """{"rl.kl": ...}, with time as "seconds.rl" and memory as "memory.rl"."""
  renamed = {"seconds": f"seconds.{name}", "peak_bytes": f"memory.{name}"}
  return {renamed.get(k, f"{name}.{k}"): v for k, v in found.items()}
