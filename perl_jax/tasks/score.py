"""Scores the rows of a file with a reward model, and says how good it is."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging

from perl_jax import files, hosts
from perl_jax import metrics as metrics_lib
from perl_jax.data import records
from perl_jax.tasks.evaluation import again, candidates, reward_model
from perl_jax.tasks.evaluation.so_far import NOTHING, Part, SoFar
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import config_files, shared
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.training import batching, inputs, reported, standing, whole

# Tables of RewardBench and RM-Bench.
BENCHMARK = "benchmark.json"


class Read(NamedTuple):
  """What is read before anything is scored.

  Attributes:
    reward: The reward model.
    steps: Entry of the summary: the step of its checkpoint.
    rows: The rows.
    unusable: Number of rows of the file that are not among them.
    stands_on: What all of it is.
  """

  reward: Start
  steps: dict[str, int]
  rows: batching.Inputs
  unusable: int
  stands_on: standing.Standing


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes scores.jsonl and summary.json; returns the summary.

  Where they are there, made from the same model and rows, nothing is changed.
  """
  started = time.perf_counter()
  check(config)
  # Bad rows are refused before a model is read.
  splits = whole.load(config, "candidates")
  candidates.check_free(splits.validation, config.field)
  mesh, workdir = shared.make_mesh(config), Path(workdir).absolute()
  with jax.set_mesh(mesh):
    return again.made_once(
      config,
      workdir,
      lambda: read(config, mesh, splits),
      lambda found, so_far: _score(
        config, mesh, workdir, found, so_far, started
      ),
    )


def _score(
  config, mesh, workdir, found: Read, so_far: SoFar, started
) -> dict[str, float]:
  """Scores what was read; `started` is `time.perf_counter()` at the start."""
  rows = score(config, mesh, found.reward, found.rows, so_far.part("scores"))
  summary, tables = candidates.quality(rows)
  dropped = found.unusable + len(found.rows.rows) - len(rows)
  summary |= {"rows_dropped": dropped} | found.steps
  summary["seconds"] = time.perf_counter() - started
  log_results(summary)
  if hosts.is_primary():
    files.write_jsonl(
      workdir / reward_model.SCORES,
      (candidates.written(row, config.field) for row in rows),
    )
    (workdir / BENCHMARK).unlink(missing_ok=True)  # of an earlier run
    if tables:
      files.write_json(workdir / BENCHMARK, tables)
  with metrics_lib.Writer(
    workdir, total_steps=1, name="score", enabled=hosts.is_primary()
  ) as writer:
    writer.write(1, summary)
    again.note(workdir, found.stands_on)
    writer.summary(summary)
  return summary


def check(config: shared.Config) -> None:
  """Checks the fields that no other command has, or that mean nothing here.

  Raises:
    ValueError: Names the field and the way out.
  """
  if not config.reward.init:
    raise ValueError(
      "config.reward.init is empty: give the reward model, the workdir of"
      f" {config_files.called('reward')} or the directory of a sequence"
      " classifier."
    )
  if config.reward.fn:
    raise ValueError(
      f"config.reward.fn={config.reward.fn!r}: rows are scored by a reward"
      " model alone. Leave it out."
    )
  if not config.field or config.field in ("id", "prompt", "messages"):
    raise ValueError(
      f"config.field={config.field!r} must be a name for the score that no"
      " field of a row has, such as 'score'."
    )
  rl_settings.check_reward(config)


def read(
  config: shared.Config, mesh: jax.sharding.Mesh, splits: records.Splits
) -> Read:
  """Reads the reward model of a config, and encodes the rows for it.

  Raises:
    ValueError: It is none, or rows are longer than it takes.
  """
  which = reported.checkpoint_of(
    config.reward.init, config.reward.checkpoint, config.data.to_dict()
  )
  reward = initial_roles.read_reward(config, which, mesh)
  if config.data.max_len > reward.config.max_len:
    raise ValueError(
      f"config.data.max_len={config.data.max_len}, but the reward model"
      f" {config.reward.init} takes {reward.config.max_len} tokens. Lower it:"
      " longer rows are left out and counted."
    )
  rows = inputs.read(
    config,
    reward.load_tokenizer(),
    "candidates",
    train=False,
    closed=reward_model.is_closed(reward),
    splits=splits,
    packing=reward_model.packing_of(reward),
  )
  inputs.log_counts(rows.counts)
  return Read(
    reward,
    reported.steps_of({"reward_model": (config.reward.init, which)}),
    rows,
    splits.counts.get("unusable_dropped", 0),
    standing.of_evaluation(config, {"reward": reward}, [rows]),
  )


def score(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  reward: Start,
  data: batching.Inputs,
  so_far: Part = NOTHING,
) -> list[candidates.Scored]:
  """Scored rows in their order, without those that do not fit."""
  role = initial_roles.place(mesh, {"reward": reward.role})["reward"]
  return candidates.score(
    reward_model.compiled_scorer(reward, role, data.max_targets),
    role,
    data,
    mesh,
    combine=config.reward.combine,
    std_weight=config.reward.std_weight,
    so_far=so_far,
  )


def log_results(summary: dict[str, float]) -> None:
  """Logs the accuracies with their intervals, a line each."""
  for name, value in summary.items():
    if f"{name}_low" in summary:
      logging.info(
        "score: %s %.1f %% (95 %%: %.1f to %.1f)",
        name,
        100 * value,
        100 * summary[f"{name}_low"],
        100 * summary[f"{name}_high"],
      )
