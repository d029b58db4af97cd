"""Several models trained in one step, on one backbone.

Every leaf of what is trained, and of the optimiser's state, has a leading axis
of members. They never meet: gradients, clipping and moments are of each alone,
and a member ends where it would have ended without the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from perl_jax import params as params_lib
from perl_jax.objectives import masked
from perl_jax.steps.train import LossFn, TrainState, make_train_step

# P(count <= n) of a Poisson distribution with mean 1, n = 0 .. 9.
_POISSON = (
  0.36787944, 0.73575888, 0.91969860, 0.98101184, 0.99634015,
  0.99940582, 0.99991676, 0.99998975, 0.99999887, 0.99999989,
)  # fmt: skip


class Resampled(NamedTuple):
  """A batch in which a row may count more than once, or not at all.

  Attributes:
    batch: The rows.
    weights: How often each of them counts, `[B]`, float32.
  """

  batch: Any
  weights: jax.Array


def unpack(batch: Any) -> tuple[Any, jax.Array | None]:
  """(batch, weights); the weights of a batch that is as it was drawn: None."""
  return batch if isinstance(batch, Resampled) else (batch, None)


def weighted_sums(
  values: jax.Array, mask: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """(sum_i w_i x_i, sum_i w_i) over what is kept; without weights w = 1."""
  if weights is None:
    total = masked.masked_sum(values, mask)
    return total, jnp.sum(mask, dtype=jnp.float32)
  return masked.masked_sum(values * weights, mask), masked.masked_sum(
    weights, mask
  )


def bootstrap_weights(
  key: jax.Array, index: jax.Array, members: int
) -> jax.Array:
  """How often each member sees each row: independent draws of Poisson(1).

  A bootstrap without its drawing: as the data grow, the number of times that a
  row is in a sample of their size tends to Poisson(1). It depends on key,
  member and row alone, so that a member sees the same sample in every epoch,
  whatever the batches are.

  Args:
    key: Of the run.
    index: Number of each row in the data, `[B]`, int32.
    members: How many models there are.

  Returns:
    `[members, B]`, float32.

  Reference: Oza and Russell 2001, Online bagging and boosting, AISTATS.
  """

  def draw(member, row):
    drawn = jax.random.uniform(
      jax.random.fold_in(jax.random.fold_in(key, member), row)
    )
    return jnp.sum(drawn > jnp.array(_POISSON), dtype=jnp.float32)

  rows = jax.vmap(draw, in_axes=(None, 0))
  every = jax.vmap(rows, in_axes=(0, None))
  return every(jnp.arange(members), index.astype(jnp.uint32))


def init_ensemble(
  trainable: params_lib.Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """State before the first step; `trainable` is stacked, see `params.stack`."""
  return TrainState(
    trainable, jax.vmap(optimizer.init)(trainable), jnp.zeros((), jnp.int32)
  )


def make_ensemble_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  members: int,
  microbatches: int = 1,
  bootstrap_key: jax.Array | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """`make_train_step` for every member at once; same signature.

  Args:
    loss_fn: Of one model; takes a batch or a `Resampled` one.
    optimizer: Of one model.
    members: How many there are.
    microbatches: As for one.
    bootstrap_key: Each member trains on a sample of the rows of its own, see
      `bootstrap_weights`; None is on all rows.

  Member k uses fold_in(key, k) for what is random in a step. Metrics are means
  over the members.
  """
  step = make_train_step(loss_fn, optimizer, microbatches=microbatches)
  state_axes = TrainState(0, 0, None)

  def ensemble_step(state, frozen, batch, key):
    keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(members))
    axes = None
    if bootstrap_key is not None:
      weights = bootstrap_weights(bootstrap_key, batch.index, members)
      batch, axes = Resampled(batch, weights), Resampled(None, 0)
    state, metrics = jax.vmap(
      step, in_axes=(state_axes, None, axes, 0), out_axes=(state_axes, 0)
    )(state, frozen, batch, keys)
    return state, {k: jnp.mean(v, axis=0) for k, v in metrics.items()}

  return ensemble_step
