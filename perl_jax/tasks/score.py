"""Scores the rows of a file with a reward model, and says how good it is."""

import time
from pathlib import Path

import jax
from absl import logging

from perl_jax import files, hosts
from perl_jax import metrics as metrics_lib
from perl_jax.data import records
from perl_jax.tasks.evaluation import candidates, reward_model
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import inputs, reported, whole
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled

# Tables of RewardBench and RM-Bench.
BENCHMARK = "benchmark.json"


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes scores.jsonl and summary.json; returns the summary."""
  started = time.perf_counter()
  check(config)
  # Bad rows are refused before a model is read.
  splits = whole.load(config, "candidates")
  candidates.check_free(splits.validation, config.field)
  mesh = shared.make_mesh(config)
  with jax.set_mesh(mesh), workdir_lib.preparing(config, workdir) as workdir:
    reward = load(config, mesh)
    rows, dropped = score(config, mesh, reward, splits)
    found, tables = candidates.quality(rows)
    summary = found | {"rows_dropped": dropped}
    summary["seconds"] = time.perf_counter() - started
    log_results(summary)
    if hosts.is_primary():
      files.write_jsonl(
        workdir / reward_model.SCORES,
        (candidates.written(row, config.field) for row in rows),
      )
      if tables:
        files.write_json(workdir / BENCHMARK, tables)
    with metrics_lib.Writer(
      workdir, total_steps=1, name="score", enabled=hosts.is_primary()
    ) as writer:
      writer.write(1, summary)
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
      " configs/reward.py or the directory of a sequence classifier."
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


def load(config: shared.Config, mesh: jax.sharding.Mesh) -> Start:
  """The reward model of a config.

  Raises:
    ValueError: It is none, or rows are longer than it takes.
  """
  which = reported.checkpoint_of(
    config.reward.init, config.reward.checkpoint, config.data.to_dict()
  )
  reward = restore.load(
    config.reward.init,
    which,
    "reward",
    "reward.init",
    options=model.read_options(config, mesh),
  )
  initial_roles.require_head(reward, config)
  if config.data.max_len > reward.config.max_len:
    raise ValueError(
      f"config.data.max_len={config.data.max_len}, but the reward model"
      f" {config.reward.init} takes {reward.config.max_len} tokens. Lower it:"
      " longer rows are left out and counted."
    )
  reward = initial_roles.combined(reward, config)
  return initial_roles.read_at(reward, config)


def score(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  reward: Start,
  splits: records.Splits,
) -> tuple[list[candidates.Scored], int]:
  """(scored rows in their order, number of rows that were left out)."""
  tokenization = reward.load_tokenizer()
  closed = reward.score_at == "template"
  data = inputs.read(
    config,
    tokenization,
    "candidates",
    train=False,
    closed=closed,
    splits=splits,
  )
  role = initial_roles.place(mesh, {"reward": reward.role})["reward"]
  scorer = Compiled(
    reward_model.make_scorer(
      role.backbone,
      data.max_targets,
      role.members,
      len(tokenization.closing) if closed else 0,
    ),
    name="reward scores",
  )
  rows = candidates.score(
    scorer,
    role,
    data,
    mesh,
    combine=config.reward.combine,
    std_weight=config.reward.std_weight,
  )
  inputs.log_counts(data.counts)
  unusable = splits.counts.get("unusable_dropped", 0)
  return rows, unusable + len(data.rows) - len(rows)


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
