"""Finds inside a step what is not finite, and keeps it out of the state.

A step cannot raise. It returns a number, its *fault*, that says which array was
the first with a NaN or an infinity: 0 for none, else the place in the order in
which a step computes them: the loss, the gradient of each leaf and its global
norm, the update of each leaf and its global norm.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from perl_jax import params as params_lib
from perl_jax import sharding


class Fault(NamedTuple):
  """What a fault stands for.

  Attributes:
    phase: "loss", "gradient" or "update".
    path: Path of the leaf in the trainable tree; "" for the loss or the norm.
    member: Member of an ensemble, from 0; None if there is none.
  """

  phase: str
  path: str
  member: int | None


def first_fault(
  loss: jax.Array, gradient: params_lib.Params, update: params_lib.Params
) -> jax.Array:
  """The fault of a step, int32 scalar.

  A leaf counts as finite if the square of its norm is: an optimiser squares it,
  and float32 ends at 3e38.

  Args:
    loss: Mean loss, a scalar.
    gradient: Gradient of the trainable tree.
    update: What the optimiser would add to the trainable tree.
  """
  checked = [loss]
  for tree in (gradient, update):
    checked += [optax.tree.norm(leaf) for leaf in jax.tree.leaves(tree)]
    checked.append(optax.tree.norm(tree))
  bad = ~jnp.isfinite(jnp.stack([x.astype(jnp.float32) for x in checked]))
  first = jnp.argmax(bad).astype(jnp.int32)
  return jnp.where(jnp.any(bad), first + 1, 0)


def unless_fault(fault: jax.Array, new: Any, old: Any) -> Any:
  """The tree `new` where there is no fault, and `old` bit for bit otherwise."""
  return jax.tree.map(lambda a, b: jnp.where(fault == 0, a, b), new, old)


def fault_of_members(
  faults: jax.Array, trainable: params_lib.Params
) -> jax.Array:
  """The fault of an ensemble's step: that of the first member that has one.

  Args:
    faults: Faults of all members, `[members]`, int32.
    trainable: Trainable tree, which says how many faults there are.
  """
  first = jnp.argmax(faults != 0).astype(jnp.int32)
  number = faults[first] + _count(trainable) * (first + 1)
  return jnp.where(jnp.any(faults != 0), number, 0)


def describe_fault(fault: int, trainable: params_lib.Params) -> Fault:
  """What a fault other than 0 stands for.

  Args:
    fault: From `first_fault` or `fault_of_members`.
    trainable: Trainable tree of the step.
  """
  paths = [
    sharding.path_string(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(trainable)
  ]
  places = [("loss", "")]
  for phase in ("gradient", "update"):
    places += [(phase, path) for path in [*paths, ""]]
  member, place = divmod(fault - 1, _count(trainable))
  return Fault(*places[place], member - 1 if member else None)


def _count(trainable: params_lib.Params) -> int:
  """Number of different faults of one model."""
  return 1 + 2 * (len(jax.tree.leaves(trainable)) + 1)
