"""Trains several models on one backbone in one step.

Every leaf of the trainable tree and of the optimiser's state has a leading axis
of members. The members are independent: each has its own gradient, clipping and
moments, and ends where it would have ended without the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from perl_jax import params as params_lib
from perl_jax.steps import finite
from perl_jax.steps.train import LossFn, TrainState, make_train_step


def init_ensemble(
  trainable: params_lib.Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """State before the first step.

  Args:
    trainable: Trees of all members, from `params.stack`.
    optimizer: Optax transformation over the tree of one member.
  """
  return TrainState(
    trainable, jax.vmap(optimizer.init)(trainable), jnp.zeros((), jnp.int32)
  )


def make_ensemble_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  members: int,
  own_rows: bool,
  microbatches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """`make_train_step` for every member at once; same signature.

  Args:
    loss_fn: Loss of one member.
    optimizer: Optax transformation over the tree of one member.
    members: Number of members.
    own_rows: Whether each member has its own rows: the leaves of a batch are
      then `[B, members, ...]`. Otherwise all members train on `[B, ...]`.
    microbatches: Number of equal parts that a batch is cut into; see
      `make_train_step`.

  Member k uses the random key fold_in(key, k). Metrics are means over the
  members, but for "fault", which is that of the first member that has one: the
  others are updated all the same.
  """
  step = make_train_step(loss_fn, optimizer, microbatches=microbatches)
  state_axes = TrainState(0, 0, None)
  together = jax.vmap(
    step,
    in_axes=(state_axes, None, 1 if own_rows else None, 0),
    out_axes=(state_axes, 0),
  )

  def ensemble_step(state, frozen, batch, key):
    keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(members))
    state, metrics = together(state, frozen, batch, keys)
    faults = metrics.pop("fault")
    means = {name: jnp.mean(v, axis=0) for name, v in metrics.items()}
    means["fault"] = finite.fault_of_members(faults, state.trainable)
    return state, means

  return ensemble_step
