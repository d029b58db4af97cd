"""Trains a reward model: pairwise (Bradley-Terry) or pointwise (labels).

With `config.ensemble` above 1 it trains so many of them at once on one
backbone, each from its own adapter and on its own rows.
"""

import time
from pathlib import Path

import jax
import optax
from absl import logging

from perl_jax import files, hosts, roles, sharding
from perl_jax.tasks.dry_run.abstract import AbstractStage
from perl_jax.tasks.dry_run.programs import StagePrograms
from perl_jax.tasks.evaluation import reward_model
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import shared, streams
from perl_jax.tasks.training import batching, begin, inputs, loop, standing
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh, optimizer = shared.make_mesh(config), shared.make_optimizer(config)
  reward_settings.check(config, mesh)
  shared.require_backbone(config, "reward")
  kind = reward_settings.loss_of(config).data
  members = config.ensemble
  with workdir_lib.preparing(config, workdir) as workdir:
    start, tokenization = begin.start(config, "reward", workdir, kind, mesh)
    closed = config.score_at == "template"
    closing = len(tokenization.closing) if closed else 0
    packing = batching.Packing.of(
      start.config,
      targets=config.head == "likelihood",
      own_rows=reward_settings.own_rows(config),
    )
    data = inputs.read(
      config, tokenization, kind, closed=closed, packing=packing
    )
    reward_settings.require_different(config, start.role)
    if start.role.head is not None and start.score_at != config.score_at:
      logging.warning(
        "config.reward.init=%r was trained to be read at the end of the %s, and"
        " goes on with config.score_at=%r.",
        config.reward.init,
        start.score_at,
        config.score_at,
      )
    stands_on = standing.of_run(config, start, tokenization, [data])
    prepared = begin.prepare(
      config,
      workdir,
      start,
      "reward",
      stands_on,
      head=config.head,
      members=members,
      score_at=config.score_at,
    )
  inputs.log_counts(data.counts)

  with jax.set_mesh(mesh):
    backbone, summary = prepared.role.backbone, prepared.summary
    frozen = sharding.place(mesh, prepared.role.frozen, share=True)
    state = prepared.state(mesh, optimizer)
    del start, prepared
    key = streams.key_of(config.seed, streams.Stream.REWARD)
    train_step = make_train_step(
      config, backbone, optimizer.transformation, data.max_targets, closing
    )
    score = Compiled(
      reward_model.make_scorer(backbone, data.max_targets, members, closing),
      name="reward scores",
    )

    def score_rows(trainable):
      role = roles.Role(backbone, trainable["reward"], frozen, members)
      return reward_model.score_rows(score, role, data, mesh)

    scored = {}  # rows by step: no checkpoint is scored twice in a process

    def evaluate(state, step):
      scored[step] = score_rows(state.trainable)
      found = reward_model.quality(scored[step])
      return {f"validation/{k}": v for k, v in found.items()}

    with loop.open_run(
      config,
      workdir,
      mesh,
      state,
      started=started,
      stands_on=stands_on.digests,
      best=("validation/log_loss", "min"),
      show=("train/loss", "validation/accuracy", "validation/auroc"),
    ) as opened:
      state, _ = opened.train(
        batches=data.train,
        update=loop.make_update(mesh, train_step, frozen, key),
        evaluate=evaluate,
        optimizer=optimizer,
        compiled=(train_step, score),
        flops_of=(train_step,),
        costs_of=(train_step,),
      )
      saver = opened.checkpointer
      opened.settle()  # until then the best step is not known
      reported, tree = config.steps, state.trainable
      if config.report_checkpoint == "best":
        reported = saver.best_step
        if reported not in scored:
          tree = saver.best_trainable(tree)
      rows = scored.get(reported) or score_rows(tree)
      if hosts.is_primary():
        files.write_jsonl(workdir / reward_model.SCORES, rows)
      summary |= reward_model.quality(rows)
      steps_ = {"checkpoint_step": reported, "best_step": saver.best_step}
      summary = opened.finish(summary | steps_)
  return summary


def programs(abstract: AbstractStage) -> StagePrograms:
  """The program of a training step, from abstract arrays."""
  config, optimizer = abstract.config, shared.make_optimizer(abstract.config)
  role = abstract.role(config.head, config.ensemble)
  own_rows = reward_settings.own_rows(config) is not None
  batch = abstract.responses(
    reward_settings.loss_of(config).data,
    targets=config.head == "likelihood",
    share=config.member_share if own_rows else 1.0,
    members=config.ensemble if own_rows else 0,
  )
  step = make_train_step(
    config,
    role.backbone,
    optimizer.transformation,
    abstract.max_targets or config.data.response_len,
  )
  return abstract.one_step("reward", role, optimizer, step, batch)


def make_train_step(
  config: shared.Config,
  backbone: roles.Backbone,
  optimizer: optax.GradientTransformation,
  max_response: int,
  closing: int = 0,
) -> Compiled:
  """The training step, `step(state, frozen, batch, key)`.

  `max_response` is at least the number of tokens of any response; see
  `roles.packed_scores` for `closing`.
  """
  make_loss = reward_settings.loss_of(config).make
  loss = make_loss(backbone, max_response=max_response, closing=closing)
  step = reward_settings.make_step(config, loss, optimizer)
  return Compiled(step, name="reward step", donate=(0,))
