"""Trains a reward model: pairwise (Bradley-Terry) or pointwise (labels).

With `config.ensemble` above 1 so many of them at once, on one backbone, each
from an adapter of its own and on rows of its own.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from perl_jax import classification, hosts, roles, sharding, steps
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.objectives import ensembles
from perl_jax.tasks import ensemble, inputs, loop, setup, stage
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.compiled import Compiled

KINDS = {"pairwise": "preferences", "pointwise": "labelled"}
SCORES = "scores.jsonl"
_SIDES = ("chosen", "rejected", "score")


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
  members = config.ensemble
  ensemble.check(config, mesh)
  with setup.preparing(config, workdir) as workdir:
    start = inputs.start(config, "reward", workdir, kind, mesh)
    inputs.require_room(config, start.config.max_len)
    tokenization = inputs.load_tokenizer(start)
    data = read(config, tokenization)
    lora = setup.lora_spec(config)
    ensemble.require_different(config, start)
    trainable, frozen = start_lib.ensemble_of(
      start,
      members=members,
      lora=lora,
      tuning=config.tuning,
      seed=config.seed,
      head=config.head,
    )
    stage.write_model(
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
  summary = setup.share(trainable, frozen)
  logging.info("reward: %s", summary)

  with jax.set_mesh(mesh):
    backbone = roles.Backbone(start.config, lora)
    frozen = sharding.place(mesh, frozen, share=True)
    init = steps.init_state if members == 1 else steps.init_ensemble
    state = init(sharding.place(mesh, trainable), optimizer)
    state = sharding.place(mesh, state)
    del start, trainable
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    own_rows = ensemble.own_rows(config, len(data.train_rows))
    train_step = make_train_step(config, backbone, optimizer, data.max_targets)
    score = Compiled(
      make_scorer(backbone, data.max_targets, members), name="reward scores"
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
      if hosts.is_primary():
        metrics_lib.write_jsonl(workdir / SCORES, rows)
      summary |= quality(rows) | {
        "best_step": saver.best_step,
        "seconds": time.perf_counter() - started,
        "seconds_compiling": train_step.compile_seconds,
        "peak_bytes": train_step.peak_bytes,
      }
      opened.writer.summary(summary)
  return summary


def make_train_step(
  config: setup.Config,
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
  step = ensemble.make_step(config, loss, optimizer)
  return Compiled(step, name="reward step", donate=(0,))


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


def make_scorer(backbone: roles.Backbone, max_response: int, members: int = 1):
  """Returns `score(trainable, frozen, tokens, lengths, prompt_lengths)`.

  `[B]` float32; of an ensemble `[members, B]`.
  """

  def score(trainable, frozen, tokens, lengths, prompt_lengths):
    return steps.reward_scores(
      backbone,
      params_lib.combine(trainable, frozen),
      tokens,
      lengths,
      prompt_lengths,
      max_response=max_response,
    )

  if members > 1:
    return jax.vmap(score, in_axes=(0, None, None, None, None))
  return score


def score_rows(
  score,
  trainable,
  frozen,
  data,
  loss,
  mesh,
  *,
  combine: str = "mean",
  std_weight: float = 1.0,
):
  """Scores of all validation rows, in their order, for scores.jsonl.

  Those of an ensemble are combined, and beside them as they are, a list.
  """
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
    batch, columns = hosts.to_host((device, columns))
    for row in np.flatnonzero(batch.valid):
      index = int(batch.index[row])
      record = data.rows[index]
      found[index] = {"id": record.id, "group": record.group} | {
        name: column[..., row].tolist() for name, column in columns.items()
      }
  rows = [found[i] for i in sorted(found)]
  return combine_rows(rows, combine, std_weight)


def combine_rows(rows, how: str, std_weight: float):
  """Puts one score in place of the members', which move to NAME_members.

  The centre of a member is its mean over all responses of the rows, where
  labels do not say what 0 is; see `ensembles.combine_scores`.
  """
  names = [name for name in _SIDES if isinstance(rows[0].get(name), list)]
  if not names:
    return rows
  scores = np.array([[row[name] for row in rows] for name in names], np.float32)
  scores = np.moveaxis(scores, -1, 0)  # [members, sides, n]
  centres = None if "label" in rows[0] else scores.mean(axis=(1, 2))
  combined = ensembles.combine_scores(
    jnp.asarray(scores.reshape(len(scores), -1)),
    how=how,
    std_weight=std_weight,
    centres=centres,
  )
  combined = np.asarray(combined).reshape(len(names), -1)
  return [
    row
    | {f"{name}_members": row[name] for name in names}
    | {name: float(side[i]) for name, side in zip(names, combined, strict=True)}
    for i, row in enumerate(rows)
  ]


def quality(rows) -> dict[str, float]:
  """Accuracy with its interval, AUROC, log loss, calibration: see there.

  Of an ensemble: of its combined score, and the accuracy of each member.
  """
  found = _metrics(rows)
  names = [name for name in _SIDES if f"{name}_members" in rows[0]]
  members = len(rows[0][f"{names[0]}_members"]) if names else 0
  for k in range(members):
    alone = [
      row | {name: row[f"{name}_members"][k] for name in names} for row in rows
    ]
    found[f"accuracy_member_{k}"] = _metrics(alone)["accuracy"]
  return found


def _metrics(rows) -> dict[str, float]:
  if "label" in rows[0]:
    return classification.binary_metrics(
      np.array([row["score"] for row in rows]),
      np.array([row["label"] for row in rows]),
    )
  return classification.preference_metrics(
    np.array([row["chosen"] for row in rows]),
    np.array([row["rejected"] for row in rows]),
  )
