"""Trains a reward model: pairwise (Bradley-Terry) or pointwise (labels)."""

import time
from pathlib import Path

import jax
import numpy as np
from absl import logging

from perl_jax import classification, roles, sharding, steps
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.tasks import inputs, loop, setup, stage
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.compiled import Compiled

KINDS = {"pairwise": "preferences", "pointwise": "labelled"}
SCORES = "scores.jsonl"


def run(config: setup.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh, optimizer = setup.make_mesh(config), setup.make_optimizer(config)
  setup.check_counts(config, mesh)
  kind = require_loss(config.loss)
  if config.head not in start_lib.HEADS:
    raise ValueError(
      f"config.head={config.head!r}: choose one of"
      f" {', '.join(start_lib.HEADS)}."
    )
  if config.report_checkpoint not in ("best", "last"):
    raise ValueError(
      f"config.report_checkpoint={config.report_checkpoint!r}: choose 'best'"
      " or 'last'."
    )
  with setup.preparing(config, workdir) as workdir:
    start = inputs.start(config, "reward", workdir, kind, mesh)
    inputs.require_room(config, start.config.max_len)
    tokenization = inputs.load_tokenizer(start)
    data = read(config, tokenization)
    lora = setup.lora_spec(config)
    trainable, frozen = start_lib.trainable_of(
      start, lora=lora, tuning=config.tuning, seed=config.seed, head=config.head
    )
    stage.write_model(
      workdir,
      start,
      lora=lora,
      tuning=config.tuning,
      trained=("reward",),
      init=config.reward.to_dict(),
      head=config.head,
    )
  inputs.log_counts(data.counts)
  summary = setup.share(trainable, frozen)
  logging.info("reward: %s", summary)

  with jax.set_mesh(mesh):
    backbone = roles.Backbone(start.config, lora)
    frozen = sharding.place(mesh, frozen, share=True)
    state = steps.init_state(sharding.place(mesh, trainable), optimizer)
    state = sharding.place(mesh, state)
    del start, trainable
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    make_loss = {
      "pairwise": steps.pairwise_loss,
      "pointwise": steps.pointwise_loss,
    }[config.loss]
    train_step = Compiled(
      steps.make_train_step(
        make_loss(backbone, max_response=data.max_targets),
        optimizer,
        microbatches=config.microbatches,
      ),
      name="reward step",
      donate=(0,),
    )
    score = Compiled(
      make_scorer(backbone, data.max_targets), name="reward scores"
    )

    def update(state, batch, step):
      batch = sharding.place_batch(mesh, batch)
      state, found = train_step(
        state, frozen, batch, jax.random.fold_in(key, step)
      )
      return state, {f"train/{k}": v for k, v in found.items()}

    def evaluate(state, step):
      del step
      rows = score_rows(score, state.trainable, frozen, data, config.loss, mesh)
      return {f"validation/{k}": v for k, v in quality(rows).items()}

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
      rows = score_rows(score, reported, frozen, data, config.loss, mesh)
      if jax.process_index() == 0:
        metrics_lib.write_jsonl(workdir / SCORES, rows)
      summary |= quality(rows) | {
        "best_step": saver.best_step,
        "seconds": time.perf_counter() - started,
        "seconds_compiling": train_step.compile_seconds,
        "peak_bytes": train_step.peak_bytes,
      }
      opened.writer.summary(summary)
  return summary


def require_loss(loss: str) -> str:
  """The kind of records that a loss reads.

  Raises:
    ValueError: The loss is unknown.
  """
  if loss not in KINDS:
    raise ValueError(f"config.loss={loss!r}: choose one of {sorted(KINDS)}.")
  return KINDS[loss]


def read(
  config: setup.Config, tokenization, *, train: bool = True
) -> inputs.Inputs:
  """Pairs or labelled rows, as `config.loss` asks."""
  reader = {"pairwise": inputs.preferences, "pointwise": inputs.labelled}
  return reader[config.loss](config, tokenization, train=train)


def make_scorer(backbone: roles.Backbone, max_response: int):
  """Returns `score(trainable, frozen, tokens, lengths, prompt_lengths)`."""

  def score(trainable, frozen, tokens, lengths, prompt_lengths):
    return steps.reward_scores(
      backbone,
      params_lib.combine(trainable, frozen),
      tokens,
      lengths,
      prompt_lengths,
      max_response=max_response,
    )

  return score


def score_rows(score, trainable, frozen, data, loss, mesh):
  """Scores of all validation rows, in their order, for scores.jsonl."""
  found = {}
  for batch in data.validation():
    device = sharding.place_batch(mesh, batch)
    if loss == "pairwise":
      columns = {
        side: score(trainable, frozen, tokens, lengths, device.prompt_lengths)
        for side, tokens, lengths in (
          ("chosen", device.chosen_tokens, device.chosen_lengths),
          ("rejected", device.rejected_tokens, device.rejected_lengths),
        )
      }
    else:
      columns = {
        "score": score(
          trainable,
          frozen,
          device.tokens,
          device.lengths,
          device.prompt_lengths,
        ),
        "label": device.labels,
      }
    columns = jax.device_get(columns)
    for row in np.flatnonzero(batch.valid):
      index = int(batch.index[row])
      record = data.rows[index]
      found[index] = {"id": record.id, "group": record.group} | {
        name: float(column[row]) for name, column in columns.items()
      }
  return [found[i] for i in sorted(found)]


def quality(rows) -> dict[str, float]:
  """Accuracy with its interval, AUROC, log loss, calibration: see there."""
  if "label" in rows[0]:
    return classification.binary_metrics(
      np.array([row["score"] for row in rows]),
      np.array([row["label"] for row in rows]),
    )
  return classification.preference_metrics(
    np.array([row["chosen"] for row in rows]),
    np.array([row["rejected"] for row in rows]),
  )
