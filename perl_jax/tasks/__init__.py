"""What a user can ask for; all side effects live here."""

import difflib
import importlib
from pathlib import Path
from typing import Any

TRAINING = ("sft", "reward", "rl", "dpo")
TASKS = (*TRAINING, "evaluate", "pipeline", "report", "export", "plan")


def run(config: Any, workdir: str | Path) -> dict[str, float]:
  """Runs `config.task` in `workdir` and returns its summary.

  Raises:
    ValueError: The task is unknown; the nearest name is given.
  """
  name = config.task
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"config.task={name!r}: choose one of {TASKS}.{hint}")
  # Imported on demand: a report needs no accelerator, a stage no plots.
  if name in TRAINING:
    from perl_jax.tasks.dry_run import memory_check

    memory_check.check(config)
  return importlib.import_module(f"perl_jax.tasks.{name}").run(config, workdir)
