"""Runs that take seconds: the configs of the project with small numbers in them.

Everything else about them is what a user gets, data set included.
"""

import importlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from perl_jax import metrics, tasks

# On a model of 12,000 parameters; one bucket, so that a step compiles once.
_STAGE = {
  "model.preset": "tiny",
  "model.scan_unroll": 1,
  "lora.rank": 2,
  "data.vocab_size": 400,
  "data.max_len": 136,
  "data.prompt_len": 88,
  "data.response_len": 12,
  "data.buckets": (),
  "data.options.size": 48,
  "data.options.validation_size": 8,
  "mesh.data": 1,
  "batch_size": 8,
  "eval.rows": 8,
  "eval.batch_size": 8,
}
_TRAINED = {"steps": 4, "eval_every": 2, "log_every": 1}
_REWARD = {"eval.rows": 0}

TRAINED_STAGES = ("sft", "reward", "rl")


def config(task: str, **overrides) -> ConfigDict:
  """The config of a stage, locked.

  Args:
    task: A file of configs/.
    **overrides: Fields, a dot written as two underscores.
  """
  return override(
    importlib.import_module(f"configs.{task}").get_config(),
    _fields(task) | {k.replace("__", "."): v for k, v in overrides.items()},
  )


def pipeline(**overrides) -> ConfigDict:
  """The config of the quickstart with small numbers in every stage."""
  fields = {
    f"{stage}.{name}": value
    for stage in (*TRAINED_STAGES, "evaluate")
    for name, value in _fields(stage).items()
  }
  fields |= {k.replace("__", "."): v for k, v in overrides.items()}
  module = importlib.import_module("configs.quickstart")
  return override(module.get_config(), fields)


def override(found: ConfigDict, fields) -> ConfigDict:
  """Sets dotted fields, as flags do, and locks."""
  found.lock()
  for name, value in fields.items():
    *parents, last = name.split(".")
    node = found
    for parent in parents:
      node = node[parent]
    node[last] = value
  return found


def _fields(task):
  fields = dict(_STAGE)
  if task == "evaluate":
    del fields["batch_size"]
  else:
    fields |= _TRAINED
  return fields | (_REWARD if task == "reward" else {})


def run(workdir: Path, task: str, **overrides) -> dict[str, float]:
  """Runs a stage and returns its summary."""
  return tasks.run(config(task, **overrides), workdir)


def lines(workdir: Path, name: str = "metrics.jsonl") -> list[dict]:
  """Rows of a JSON-lines file without what measures time."""
  return [
    {k: v for k, v in row.items() if not k.startswith(("seconds", "rate"))}
    for row in metrics.read_jsonl(workdir / name)
  ]


def summary(workdir: Path) -> dict[str, float]:
  """The summary of a run."""
  return json.loads((workdir / "summary.json").read_text())


def tree(workdir: Path) -> dict[str, bytes]:
  """Every file below a directory with what is in it."""
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in sorted(workdir.rglob("*"))
    if path.is_file()
  }
