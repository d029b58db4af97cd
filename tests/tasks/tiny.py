"""Runs that take seconds: the project's configs with small numbers in them.

Everything else about them is what a user gets, data set included.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from perl_jax import files, tasks
from perl_jax.tasks.settings import defaults

# Stages of the quickstart.
STAGES = ("sft", "reward", "rl", "evaluate")
# A model of 50,000 parameters; rows of one length: a step compiles once.
_STAGE = {
  "model.preset": "tiny",
  "model.scan_unroll": 1,
  "lora.rank": 2,
  "data.vocab_size": 400,
  "data.max_len": 136,
  "data.prompt_len": 88,
  "data.response_len": 12,
  "data.buckets": (),
  "data.pad_to_multiple_of": 128,
  "mesh.data": 1,
  "eval.batch_size": 8,
}
_GENERATED = {"data.options.size": 48, "data.options.validation_size": 8}
_TRAINED = {"batch_size": 8, "steps": 4, "eval_every": 2, "log_every": 1}
_OF_STAGE = {
  "sft": {**_TRAINED, "eval.rows": 8},
  "reward": {**_TRAINED, "eval.rows": 0},
  "rl": {**_TRAINED, "eval.rows": 8, "value.warmup_steps": 0},
  "dpo": {**_TRAINED, "eval.rows": 8},
  "evaluate": {"eval.rows": 8},
  "score": {},
  "generate": {},
  "judge": {"eval.rows": 8},
}


def fields(task: str, data_set: str = "coffee_bar") -> dict[str, Any]:
  """What makes a stage small, by dotted names."""
  generated = _GENERATED if data_set == "coffee_bar" else {}
  return _STAGE | generated | _OF_STAGE[task]


def config(
  task: str, data_set: str = "coffee_bar", /, **overrides: Any
) -> ConfigDict:
  """The config of a stage that begins with random weights, locked.

  Args:
    task: A file of configs/.
    data_set: What stands behind the colon on a command line.
    **overrides: Fields, with two underscores for each dot.
  """
  module = importlib.import_module(f"configs.{task}")
  return defaults.from_scratch(
    override(
      module.get_config(data_set), fields(task, data_set) | dotted(overrides)
    )
  )


def pipeline(**overrides: Any) -> ConfigDict:
  """The config of the quickstart with small numbers in every stage."""
  found = {
    f"{task}.{name}": value
    for task in STAGES
    for name, value in fields(task).items()
  }
  module = importlib.import_module("configs.quickstart")
  return override(module.get_config(), found | dotted(overrides))


def dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
  """{"a__b": 1} as {"a.b": 1}."""
  return {name.replace("__", "."): v for name, v in overrides.items()}


def override(found: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Sets dotted fields, as flags do, and locks."""
  found.lock()
  for name, value in values.items():
    *parents, last = name.split(".")
    node = found
    for parent in parents:
      node = node[parent]
    node[last] = value
  return found


def run(
  workdir: Path, task: str, data_set: str = "coffee_bar", /, **overrides: Any
) -> dict[str, float]:
  """Runs a stage and returns its summary."""
  return tasks.run(config(task, data_set, **overrides), workdir)


def score_benchmarks(workdir: Path, reward: str) -> dict[str, float]:
  """Runs `score` on rows as RewardBench, its second part and RM-Bench have."""
  rows = [
    {
      "prompt": "A fruit?",
      "chosen": f"A {name}.",
      "rejected": "A stone.",
      "subset": subset,
    }
    for name, subset in (
      ("plum", "alpacaeval-easy"),
      ("fig", "mt-bench-hard"),
      ("pear", "donotanswer"),
      ("lime", "hep-go"),
    )
  ]
  rows += [
    {
      "prompt": "A fruit?",
      "chosen": ["A plum.", "It is a plum.", "It is a **plum**."],
      "rejected": ["A stone.", "It is a stone.", "It is a **stone**."],
      "domain": domain,
    }
    for domain in ("chat", "math", "code", "safety-refuse")
  ]
  rows += [
    {
      "id": id,
      "prompt": "A fruit?",
      "chosen": [f"A {name}." for name in ("plum", "fig")[:right]],
      "rejected": ["A stone.", "A brick.", "A nail."],
      "subset": subset,
    }
    for id, right, subset in (
      ("1", 1, "Factuality"),
      ("2", 1, "Precise IF"),
      ("3", 1, "Math"),
      ("4", 1, "Safety"),
      ("5", 1, "Focus"),
      ("ref:0", 1, "Ties"),
      ("tied:0", 2, "Ties"),
    )
  ]
  path = workdir.with_suffix(".jsonl")
  files.write_jsonl(path, rows)
  return run(
    workdir, "score", "jsonl", reward__init=reward, data__path=str(path)
  )


def lines(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
  """Rows of a JSON-lines file without what measures time."""
  return [untimed(row) for row in files.read_jsonl(workdir / name)]


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that two equal runs share: no times, and no memory."""
  timed = ("seconds", "rate", "peak_bytes", "memory")
  return {k: v for k, v in row.items() if not k.startswith(timed)}


def summary(workdir: Path) -> dict[str, Any]:
  """The summary of a run."""
  return json.loads((workdir / "summary.json").read_text())


def tree(directory: Path) -> dict[str, bytes]:
  """Every file below a directory with what is in it."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }


def checkpoints(workdir: Path) -> dict[str, Any]:
  """Every array of every checkpoint, {"4/optimizer/step": array, ...}.

  It does not matter how many processes have written them.
  """
  found, in_numpy = {}, ocp.RestoreArgs(restore_type=np.ndarray)
  with ocp.PyTreeCheckpointer() as reader:
    for item in sorted((workdir / "checkpoints").glob("*/*/_METADATA")):
      directory = item.parent
      name = f"{directory.parent.name}/{directory.name}"
      tree = reader.metadata(directory).item_metadata.tree
      args = ocp.args.PyTreeRestore(
        restore_args=jax.tree.map(lambda _: in_numpy, tree)
      )
      tree = reader.restore(directory, args=args)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = jax.tree_util.keystr(path, simple=True, separator="/")
        found[f"{name}/{keys}"] = np.asarray(leaf)
  return found


def kept(workdir: Path) -> list[int]:
  """Steps of the checkpoints on disk."""
  found = (workdir / "checkpoints").glob("[0-9]*")
  return sorted(int(path.name) for path in found if path.name.isdigit())
