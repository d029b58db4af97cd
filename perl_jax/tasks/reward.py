"""Trains a reward model: pairwise (Bradley-Terry) or pointwise (labels).

With `config.ensemble` above 1 it trains so many of them at once on one
backbone, each from its own adapter and on its own rows.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from perl_jax import files, hosts, roles
from perl_jax.tasks.dry_run.abstract import AbstractStage
from perl_jax.tasks.dry_run.programs import StagePrograms
from perl_jax.tasks.evaluation import reward_model
from perl_jax.tasks.settings import members, shared, streams
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.training import (
  batching,
  begin,
  inputs,
  loop,
  probing,
  standing,
  together,
)
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled


class Read(NamedTuple):
  """All that a run is made from, before anything is put on the devices.

  Attributes:
    data: The rows.
    closing: Number of tokens that are read after a response.
    prepared: What is trained.
    stands_on: What all of it is.
    new_head: Whether the head is new, and of zeros.
  """

  data: batching.Inputs
  closing: int
  prepared: begin.Prepared
  stands_on: standing.Standing
  new_head: bool


class Scored:
  """The evaluations that may be reported: the best one and the last.

  Attributes:
    rows: Their rows by step.
  """

  def __init__(self):
    self.rows: dict[int, list[dict[str, Any]]] = {}
    self._losses: dict[int, float] = {}

  def keep(self, step: int, loss: float, rows: list[dict[str, Any]]) -> None:
    """Takes an evaluation, and drops what cannot be reported any more."""
    self.rows[step], self._losses[step] = rows, loss
    # Of equals the later one, as the checkpointer has it.
    best = min(self._losses, key=lambda s: (self._losses[s], -s))
    for other in self.rows.keys() - {best, step}:
      del self.rows[other], self._losses[other]


def read(
  config: shared.Config, workdir: Path, mesh: Mesh, member: together.Member
) -> Read:
  """Reads and checks all that a run is made from."""
  kind = reward_settings.loss_of(config).data
  start, tokenization = begin.start(
    config, "reward", workdir, kind, mesh, member
  )
  closed = config.score_at == "template"
  closing = len(tokenization.closing) if closed else 0
  packing = batching.Packing.of(
    start.config,
    targets=config.head == "likelihood",
    own_rows=reward_settings.own_rows(config),
  )
  data = begin.read(
    config,
    member,
    lambda: inputs.read(
      config, tokenization, kind, closed=closed, packing=packing
    ),
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
    members=config.ensemble,
    score_at=config.score_at,
  )
  new_head = start.role.head is None
  return Read(data, closing, prepared, stands_on, new_head)


def stage(
  config: shared.Config,
  workdir: str | Path,
  member: together.Member = together.ALONE,
) -> together.Requests[dict[str, float]]:
  """Trains to `config.steps`, resuming if need be; see `together`."""
  started = time.perf_counter()
  mesh, optimizer = shared.make_mesh(config), shared.make_optimizer(config)
  reward_settings.check(config, mesh)
  shared.require_backbone(config, "reward")
  models = config.ensemble
  with workdir_lib.preparing(config, workdir) as workdir:
    found = read(config, workdir, mesh, member)
  data, closing = found.data, found.closing
  stands_on, new_head = found.stands_on, found.new_head
  inputs.log_counts(data.counts)
  max_targets = yield together.Most(data.max_targets)

  with jax.set_mesh(mesh):
    prepared = found.prepared
    backbone, summary = prepared.role.backbone, prepared.summary
    frozen = prepared.base(mesh, member)
    state = prepared.state(mesh, optimizer)
    del found, prepared
    key = streams.key_of(config.seed, streams.Stream.REWARD)
    train_step = make_train_step(config, backbone, max_targets, closing, member)
    score = member.once(
      ("scores", backbone),
      lambda: Compiled(
        reward_model.make_scorer(backbone, max_targets, models, closing),
        name="reward scores",
      ),
    )

    def role_of(trainable):
      return roles.Role(backbone, trainable["reward"], frozen, models)

    def score_rows(trainable):
      return reward_model.score_rows(score, role_of(trainable), data, mesh)

    scored = Scored()  # no checkpoint is scored twice in a process

    def evaluate(state, step):
      rows = score_rows(state.trainable)
      found = reward_model.quality(rows)
      scored.keep(step, found["log_loss"], rows)
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
      member=member,
    ) as opened:
      if config.probe_rows and new_head and not opened.resumed:
        first = role_of(opened.state.trainable)
        of = probing.Probing(first, data, mesh, closing, max_targets, member)
        opened = probing.begun(config, opened, of)
      state, _ = yield from opened.train(
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
        if reported not in scored.rows:
          tree = saver.best_trainable(tree)
      rows = scored.rows.get(reported) or score_rows(tree)
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
    abstract.max_targets or config.data.response_len,
    member=abstract.member(),
  )
  return abstract.one_step("reward", role, optimizer, step, batch)


def make_train_step(
  config: shared.Config,
  backbone: roles.Backbone,
  max_response: int,
  closing: int = 0,
  member: together.Member = together.ALONE,
) -> Compiled:
  """The training step, `step(state, frozen, batch, key)`; see `Member.step`.

  `max_response` is at least the number of tokens of any response; see
  `roles.packed_scores` for `closing`.
  """
  make_loss = reward_settings.loss_of(config).make

  def make(values):
    loss = make_loss(backbone, max_response=max_response, closing=closing)
    return reward_settings.make_step(
      config,
      members.with_alpha(config, values, loss),
      shared.make_optimizer(config, values=values).transformation,
    )

  return member.step(make, name="reward step")
