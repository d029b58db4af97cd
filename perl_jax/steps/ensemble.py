"""Several models trained in one step, on one backbone.

Every leaf of what is trained, and of the optimiser's state, has a leading axis
of members. They never meet: gradients, clipping and moments are of each alone,
and a member ends where it would have ended without the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from perl_jax import params as params_lib
from perl_jax.steps.train import LossFn, TrainState, make_train_step


def init_ensemble(
  trainable: params_lib.Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """State before the first step; `trainable` is stacked by `params.stack`."""
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
    loss_fn: Of one model.
    optimizer: Of one model.
    members: How many there are.
    own_rows: The leaves of a batch are `[B, members, ...]`: each member has
      rows of its own. Otherwise all see the same `[B, ...]`.
    microbatches: As for one.

  Member k uses fold_in(key, k) for what is random in a step. Metrics are means
  over the members.
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
    return state, {name: jnp.mean(v, axis=0) for name, v in metrics.items()}

  return ensemble_step
