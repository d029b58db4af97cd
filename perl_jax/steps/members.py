"""One training step for several members of a run, each with its own state.

The members are adapters on one frozen base. Each has its own batch, key,
optimiser state and numbers such as a learning rate, and ends where it would
have ended alone: `make_ensemble_step` is for models that are one, this is for
runs that have nothing but the base in common.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from perl_jax import params as params_lib
from perl_jax.steps.train import LossFn, TrainState

# Numbers in which members differ, by the names of their config fields.
Values = Mapping[str, jax.Array]


def make_members_step(
  make: Callable[[Values], Callable[..., tuple[TrainState, dict[str, Any]]]],
) -> Callable[..., tuple[tuple[TrainState, ...], tuple[dict[str, Any], ...]]]:
  """Returns `step(states, frozen, batches, keys, values)` of all members.

  Args:
    make: `make(values)` returns the step of one member,
      `(state, frozen, batch, key) -> (state, metrics)`. It is called with
      scalars that are traced.

  `states`, `batches` and `keys` are tuples with one of each member, of the same
  shapes; `values` has an array `[members]` for each number in which they
  differ. States and metrics are returned as tuples too: in between, all leaves
  are stacked, so that every product with the base is one for all members.
  """

  def step(states, frozen, batches, keys, values):
    def one(state, batch, key, values):
      return make(values)(state, frozen, batch, key)

    found = jax.vmap(one)(
      *(params_lib.stack(trees) for trees in (states, batches, keys)), values
    )
    return tuple(
      tuple(params_lib.member(tree, k) for k in range(len(states)))
      for tree in found
    )

  return step


def with_scale(loss_fn: LossFn, factor: jax.Array) -> LossFn:
  """A loss whose adapters have `factor` times the scale of their shape.

  (factor scale) A B = scale A (factor B): the loss reads `factor B`, and the
  gradient is that with respect to B.

  Args:
    loss_fn: Loss with adapters of a static scale.
    factor: Number that the scale is multiplied with, a float32 scalar.
  """

  def scaled(trainable, frozen, batch, key):
    leaves = params_lib.flatten(trainable)
    read = {
      path: leaf * factor if path.endswith("/lora_b") else leaf
      for path, leaf in leaves.items()
    }
    return loss_fn(params_lib.unflatten(read), frozen, batch, key)

  return scaled
