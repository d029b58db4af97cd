"""The training step that all losses share.

It reduces, differentiates with respect to the trainable tree only, and updates.

A loss function returns sums and counts, never means: the step divides the sum
over all microbatches by the count over all microbatches, so that the result is
the same however a batch is cut.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from perl_jax import params as params_lib
from perl_jax import sharding
from perl_jax.objectives import masked
from perl_jax.steps import finite

# {"name": (sum, count)}; the key "loss" is what is minimised.
Sums = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[..., Sums]


class TrainState(NamedTuple):
  """Everything that a step changes.

  Attributes:
    trainable: Parameters in gradients, optimiser and checkpoints: a tree for
      each role that is trained, {"policy": ...}, {"reward": ...} or
      {"policy": ..., "value": ...}.
    opt_state: Optax state over `trainable`.
    step: Updates so far, int32 scalar.
    controls: Scalars by name that a task adapts during the run, such as the
      weight of the KL; no step reads or changes them. () if there are none.
  """

  trainable: Any
  opt_state: Any
  step: jax.Array
  controls: Any = ()


def init_state(
  trainable: params_lib.Params,
  optimizer: optax.GradientTransformation,
  **controls: float,
) -> TrainState:
  """State before the first step.

  Args:
    trainable: A tree for each role that is trained.
    optimizer: Optax transformation over the trainable tree.
    **controls: Initial values of `TrainState.controls`.
  """
  return TrainState(
    trainable,
    optimizer.init(trainable),
    jnp.zeros((), jnp.int32),
    {name: jnp.float32(value) for name, value in controls.items()} or (),
  )


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  lengths: sharding.Lengths | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns `step(state, frozen, batch, key) -> (state, metrics)`.

  Args:
    loss_fn: `(trainable, frozen, batch, key) -> Sums`; "loss" is required.
      `trainable` is that of the state, a tree for each role.
    optimizer: Optax transformation over the trainable tree.
    microbatches: The batch is cut into this many equal parts, whose gradients
      are added one after the other.
    lengths: Sorts the rows into microbatches, and cuts each to the length that
      it needs; None leaves them where they are, as long as they are. Sums and
      counts are added up all the same, so that only the order of sums differs.

  The gradient is d(sum of losses) / d(trainable), divided by the count of
  "loss" over the whole batch. `metrics` holds each mean, the global norms of
  gradient, update and updated parameters, and as "fault" the first array that
  is not finite, see `finite`. Where there is one, nothing of the state changes
  but its step count.
  """

  def sums_and_grads(trainable, frozen, batch, key):
    def total(trainable):
      sums = loss_fn(trainable, frozen, batch, key)
      return sums["loss"][0], sums

    (_, sums), grads = jax.value_and_grad(total, has_aux=True)(trainable)
    return sums, grads

  def accumulate(trainable, frozen, batch, key):
    def of_part(part, key):
      def run(cut):
        return sums_and_grads(trainable, frozen, cut, key)

      return lengths.on_bucket(run, part) if lengths else run(part)

    if microbatches == 1:
      return of_part(batch, key)
    parts = _microbatches(batch, microbatches, lengths)
    keys = jax.random.split(key, microbatches)

    def add(total, given):
      return jax.tree.map(jnp.add, total, of_part(*given)), None

    shapes = jax.eval_shape(
      sums_and_grads,
      trainable,
      frozen,
      *jax.tree.map(lambda x: x[0], (parts, keys)),
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, keys))[0]

  def step(state, frozen, batch, key):
    sums, grads = accumulate(state.trainable, frozen, batch, key)
    count = jnp.maximum(sums["loss"][1], 1.0)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.trainable
    )
    metrics = means(sums)
    metrics["gradient_norm"] = optax.tree.norm(grads)
    metrics["update_norm"] = optax.tree.norm(updates)
    metrics["fault"] = finite.first_fault(metrics["loss"], grads, updates)
    trainable, opt_state = finite.unless_fault(
      metrics["fault"],
      (optax.apply_updates(state.trainable, updates), opt_state),
      (state.trainable, state.opt_state),
    )
    metrics["trainable_norm"] = optax.tree.norm(trainable)
    return state._replace(
      trainable=trainable, opt_state=opt_state, step=state.step + 1
    ), metrics

  return step


def _microbatches(batch, count: int, lengths: sharding.Lengths | None):
  if lengths is None:
    return sharding.strided_parts(batch, count)
  parts, _ = sharding.parts_by_length(batch, lengths.of(batch), count)
  return parts


def means(sums: Sums) -> dict[str, jax.Array]:
  """sum / count of each entry; an entry that counted nothing is 0."""
  return {
    name: total / jnp.maximum(count, 1.0)
    for name, (total, count) in sums.items()
  }


def masked_sums(
  values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(sum of the kept values, number of them), both float32 scalars."""
  return masked.masked_sum(values, mask), jnp.sum(mask, dtype=jnp.float32)
