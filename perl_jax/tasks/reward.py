"""Trains a reward model: pairwise (Bradley-Terry) or pointwise (labels).

With `config.ensemble` above 1 so many of them at once, on one backbone, each
from an adapter of its own and on rows of its own.
"""

import time
from pathlib import Path

import jax
import optax
from absl import logging

from perl_jax import files, hosts, roles, sharding, steps
from perl_jax.tasks.evaluation import reward_model as reward_evaluation
from perl_jax.tasks.initial import manifest
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import begin, inputs, loop
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh, optimizer = shared.make_mesh(config), shared.make_optimizer(config)
  shared.check_counts(config, mesh)
  kind = inputs.require_loss(config.loss)
  if config.head not in trainable_lib.HEADS:
    raise ValueError(
      f"config.head={config.head!r}: choose one of"
      f" {', '.join(trainable_lib.HEADS)}."
    )
  if config.report_checkpoint not in ("best", "last"):
    raise ValueError(
      f"config.report_checkpoint={config.report_checkpoint!r}: choose 'best'"
      " or 'last'."
    )
  members = config.ensemble
  reward_settings.check(config, mesh)
  with workdir_lib.preparing(config, workdir) as workdir:
    start = begin.start(config, "reward", workdir, kind, mesh)
    inputs.require_room(config, start.config.max_len)
    tokenization = begin.load_tokenizer(start)
    data = inputs.read(config, tokenization)
    lora = shared.lora_spec(config)
    reward_settings.require_different(config, start)
    trainable, frozen = trainable_lib.ensemble_of(
      start,
      members=members,
      lora=lora,
      tuning=config.tuning,
      seed=config.seed,
      head=config.head,
    )
    manifest.write_model(
      workdir,
      start,
      lora=lora,
      tuning=config.tuning,
      trained=("reward",),
      init=config.reward.to_dict(),
      head=config.head,
      ensemble=members,
    )
  inputs.log_counts(data.counts)
  summary = shared.share(trainable, frozen)
  logging.info("reward: %s", summary)

  with jax.set_mesh(mesh):
    backbone = roles.Backbone(start.config, lora)
    frozen = sharding.place(mesh, frozen, share=True)
    init = steps.init_state if members == 1 else steps.init_ensemble
    state = init(sharding.place(mesh, trainable), optimizer)
    state = sharding.place(mesh, state)
    del start, trainable
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    own_rows = reward_settings.own_rows(config, len(data.train_rows))
    train_step = make_train_step(config, backbone, optimizer, data.max_targets)
    score = Compiled(
      reward_evaluation.make_scorer(backbone, data.max_targets, members),
      name="reward scores",
    )

    def update(state, batch, step):
      batch = sharding.place_batch(mesh, batch)
      if own_rows is not None:
        # A member's rows are picked from the whole batch, whoever read them.
        batch = sharding.place_whole(mesh, own_rows(hosts.to_host(batch)))
      state, found = train_step(
        state, frozen, batch, jax.random.fold_in(key, step)
      )
      return state, {f"train/{k}": v for k, v in found.items()}

    def evaluate(state, step):
      del step
      rows = reward_evaluation.score_rows(
        score, state.trainable, frozen, data, config.loss, mesh
      )
      return {
        f"validation/{k}": v for k, v in reward_evaluation.quality(rows).items()
      }

    with loop.open_run(
      config,
      workdir,
      state,
      name="reward",
      best=("validation/log_loss", "min"),
      show=("train/loss", "validation/accuracy", "validation/auroc"),
    ) as opened:
      state, _ = opened.train(
        batches=data.train, update=update, evaluate=evaluate
      )
      saver = opened.checkpointer
      reported = state.trainable
      if config.report_checkpoint == "best":
        reported = saver.best_trainable(state.trainable)
      rows = reward_evaluation.score_rows(
        score, reported, frozen, data, config.loss, mesh
      )
      if hosts.is_primary():
        files.write_jsonl(workdir / reward_evaluation.SCORES, rows)
      summary |= reward_evaluation.quality(rows) | {
        "best_step": saver.best_step,
        "seconds": time.perf_counter() - started,
        "seconds_compiling": train_step.compile_seconds,
        "peak_bytes": train_step.peak_bytes,
      }
      opened.writer.summary(summary)
  return summary


def make_train_step(
  config: shared.Config,
  backbone: roles.Backbone,
  optimizer: optax.GradientTransformation,
  max_response: int,
) -> Compiled:
  """The step that is trained by: `step(state, frozen, batch, key)`."""
  make_loss = {
    "pairwise": steps.pairwise_loss,
    "pointwise": steps.pointwise_loss,
  }[config.loss]
  loss = make_loss(backbone, max_response=max_response)
  step = reward_settings.make_step(config, loss, optimizer)
  return Compiled(step, name="reward step", donate=(0,))
