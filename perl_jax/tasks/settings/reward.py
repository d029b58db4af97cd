"""Settings of the reward stage: its loss, head and ensemble."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from perl_jax import roles, steps
from perl_jax.data.batches import member_rows
from perl_jax.objectives import ensembles
from perl_jax.tasks.settings import shared


class Loss(NamedTuple):
  """A loss of a reward model.

  Attributes:
    data: Kind of records that it is trained on, a key of `batches.KINDS`.
    make: `make(backbone, max_response=..., closing=...)` returns the loss
      function.
  """

  data: str
  make: Callable[..., steps.LossFn]


LOSSES = {
  "pairwise": Loss("preferences", steps.pairwise_loss),
  "pointwise": Loss("labelled", steps.pointwise_loss),
}
HEADS = ("scalar", "likelihood")  # see `roles.response_scores`
CHECKPOINTS = ("best", "last")
# Where a score is read: at the last token that the chat template writes when a
# response ends a conversation, or at the stop token of the response.
SCORE_AT = ("template", "turn")
# "average" makes one model of the members when they are loaded.
COMBINATIONS = (*ensembles.COMBINATIONS, "average")


def check(config: shared.Config, mesh: Mesh) -> None:
  """Checks the fields that only the reward stage has.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  shared.check_counts(config, mesh)
  for field, allowed in (
    ("head", HEADS),
    ("score_at", SCORE_AT),
    ("report_checkpoint", CHECKPOINTS),
  ):
    if config[field] not in allowed:
      raise ValueError(
        f"config.{field}={config[field]!r}: choose one of"
        f" {', '.join(map(repr, allowed))}."
      )
  _check_ensemble(config, mesh)


def check_reading(reward: shared.Config, section: str) -> None:
  """Checks the fields that say how a trained reward model is read.

  Args:
    reward: The section of a config that has them.
    section: Its dotted name, "config.reward".

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  if reward.combine not in COMBINATIONS:
    raise ValueError(
      f"{section}.combine={reward.combine!r}: choose one of {COMBINATIONS}."
    )
  if reward.score_at not in ("", *SCORE_AT):
    raise ValueError(
      f"{section}.score_at={reward.score_at!r}: choose one of {SCORE_AT}, or ''"
      " for where the reward model was trained to be read."
    )


def loss_of(config: shared.Config) -> Loss:
  """The loss that `config.loss` names.

  Raises:
    ValueError: There is none of that name.
  """
  if config.loss not in LOSSES:
    raise ValueError(
      f"config.loss={config.loss!r}: choose one of {sorted(LOSSES)}."
    )
  return LOSSES[config.loss]


def _check_ensemble(config: shared.Config, mesh: Mesh) -> None:
  members, share = config.ensemble, config.member_share
  rows = round(share * config.batch_size)
  if members > 1 and (not rows or rows % config.microbatches):
    raise ValueError(
      f"config.member_share={share} leaves each model {rows} rows of"
      f" config.batch_size={config.batch_size}, which config.microbatches="
      f"{config.microbatches} does not divide. Change one of the three."
    )
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if members > 1 and rows % shards:
    raise ValueError(
      f"config.member_share={share} leaves each model {rows} rows of"
      f" config.batch_size={config.batch_size}, which do not divide over"
      f" mesh.data * mesh.fsdp = {shards} devices. Change one of them."
    )


def require_different(config: shared.Config, start: roles.Role) -> None:
  """Checks that the members of an ensemble will not stay equal.

  Args:
    config: Config of the stage.
    start: The model that the members start from.

  Raises:
    ValueError: They start from one adapter, on the same rows, without dropout.
  """
  differ = (
    config.member_share < 1
    or config.lora.dropout
    or start.adapter is None
    or start.members > 1
  )
  if config.ensemble > 1 and not differ:
    raise ValueError(
      f"config.ensemble={config.ensemble} with config.member_share=1: all"
      " members would start from the earlier stage's adapter, see the same"
      " rows and stay equal. Set config.member_share=0.5, or start from a stage"
      " that was tuned in full."
    )


def own_rows(
  config: shared.Config,
) -> Callable[[int], member_rows.Subsets] | None:
  """Picks each member's rows of a batch; None where all see the same rows.

  The function takes the number of training rows.
  """
  if config.ensemble == 1 or config.member_share == 1:
    return None
  return functools.partial(
    member_rows.Subsets,
    members=config.ensemble,
    share=config.member_share,
    seed=config.seed,
  )


def make_step(
  config: shared.Config,
  loss_fn: steps.LossFn,
  optimizer: optax.GradientTransformation,
) -> Callable[..., Any]:
  """The training step of one model, or of an ensemble's members at once."""
  if config.ensemble == 1:
    return steps.make_train_step(
      loss_fn, optimizer, microbatches=config.microbatches
    )
  return steps.make_ensemble_step(
    loss_fn,
    optimizer,
    members=config.ensemble,
    own_rows=config.member_share < 1,
    microbatches=config.microbatches,
  )
