"""sft -> reward -> rl -> evaluate -> report, in one run and one workdir.

Each stage runs in `workdir/STAGE` as it would by its own command, taking the
earlier ones by their workdirs. A finished stage is not run again, so that a
killed pipeline goes on where it was.
"""

import json
from pathlib import Path

from absl import logging

from perl_jax import files, hosts, tasks
from perl_jax.reporting import terminal
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import workdir as workdir_lib

STAGES = ("sft", "reward", "rl", "evaluate")
INITS = {
  "sft": {},
  "reward": {"reward": "sft"},
  "rl": {"policy": "sft", "reward": "reward"},
  "evaluate": {"policy": "rl", "reward": "reward"},
}


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Runs all stages and writes summary.json and report.html."""
  with workdir_lib.preparing(config, workdir) as workdir:
    configs = {name: stage_config(config, name, workdir) for name in STAGES}
  summary = {}
  for name in STAGES:
    found = run_stage(configs[name], workdir / name)
    summary |= flat(name, found)
  summary["seconds.total"] = sum(
    v for k, v in summary.items() if k.startswith("seconds.")
  )
  if not hosts.is_primary():
    return summary
  files.write_json(workdir / "summary.json", summary)
  tasks.TASKS["report"].module().run(config, workdir)
  places = {name: workdir / name for name in ("report.html", "summary.json")}
  terminal.achieved_table(
    summary,
    places | {name: workdir / name for name in STAGES},
    results={name: tasks.TASKS[name].result for name in STAGES},
  )
  return summary


def stage_config(
  config: shared.Config, name: str, workdir: Path
) -> shared.Config:
  """The config of one stage: its own, with the run's data and seed in it.

  A field of `config.data` that is empty leaves the stage's own.
  """
  stage = config[name].copy_and_resolve_references()
  with stage.unlocked():
    stage.seed = config.seed
    for field, value in config.data.items():
      if value:
        stage.data[field] = value
    for role, earlier in INITS[name].items():
      stage[role].init = str(workdir / earlier)
  return stage.lock()


def run_stage(config: shared.Config, workdir: Path) -> dict[str, float]:
  """Runs a stage, or reads what it achieved if it has finished."""
  done = workdir / "summary.json"
  if done.is_file():
    with workdir_lib.preparing(config, workdir):
      logging.info("%s has finished; taking %s.", config.task, done)
    return json.loads(done.read_text())
  logging.info("stage %s in %s", config.task, workdir)
  return tasks.run(config, workdir)


def flat(name: str, found: dict[str, float]) -> dict[str, float]:
  """{"rl.kl": ...}, with time as "seconds.rl" and memory as "memory.rl"."""
  renamed = {"seconds": f"seconds.{name}", "peak_bytes": f"memory.{name}"}
  return {renamed.get(k, f"{name}.{k}"): v for k, v in found.items()}
