"""Statistics over the entries that a boolean mask keeps, in float32.

What a mask drops may be NaN or infinite: it reaches neither the result nor the
gradient with respect to `values`.

One thing no reduction can do: when `values` were themselves computed from a bad
number, the chain rule multiplies the zero gradient of a dropped entry by an
infinite or NaN derivative, and 0 * inf = NaN. Clean the inputs of such a
formula with `keep` before it, and reduce after it ("the double where").
"""

import chex
import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def keep(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Values where the mask is true, zeros elsewhere.

  Args:
    values: Numbers or booleans, any shape.
    mask: Which values to keep, same shape, bool.

  Returns:
    Same shape, float32. The gradient of a dropped entry is exactly 0.

  Raises:
    AssertionError: If the shapes differ or the mask is not boolean.
  """
  chex.assert_equal_shape([values, mask])
  chex.assert_type(mask, bool)
  return jnp.where(mask, jnp.asarray(values).astype(jnp.float32), 0.0)


def masked_sum(
  values: jax.Array, mask: jax.Array, axis: Axis = None
) -> jax.Array:
  """Sum of the kept values.

  sum = sum_i m_i x_i

  Args:
    values: Numbers or booleans, any shape.
    mask: Which values to keep, same shape, bool.
    axis: Axis or axes to reduce; all of them by default.

  Returns:
    Float32, `values.shape` without `axis`. 0 where nothing is kept.

  Raises:
    AssertionError: If the shapes differ or the mask is not boolean.
  """
  return jnp.sum(keep(values, mask), axis=axis)


def masked_mean(
  values: jax.Array, mask: jax.Array, axis: Axis = None
) -> jax.Array:
  """Mean of the kept values: divided by how many they are, never by the size.

  mean = (sum_i m_i x_i) / max(sum_i m_i, 1)

  Args:
    values: Numbers or booleans, any shape.
    mask: Which values to keep, same shape, bool.
    axis: Axis or axes to reduce; all of them by default.

  Returns:
    Float32, `values.shape` without `axis`. 0 where nothing is kept.

  Raises:
    AssertionError: If the shapes differ or the mask is not boolean.
  """
  return masked_sum(values, mask, axis) / _count(mask, axis)


def masked_var(
  values: jax.Array, mask: jax.Array, axis: Axis = None
) -> jax.Array:
  """Population variance of the kept values.

  var = (sum_i m_i (x_i - mean)^2) / max(sum_i m_i, 1)

  Args:
    values: Numbers or booleans, any shape.
    mask: Which values to keep, same shape, bool.
    axis: Axis or axes to reduce; all of them by default.

  Returns:
    Float32, `values.shape` without `axis`. 0 where nothing is kept, and exactly
    0 where all kept values are equal.

  Raises:
    AssertionError: If the shapes differ or the mask is not boolean.
  """
  centered = _center(values, mask, axis)
  return masked_mean(jnp.square(centered), mask, axis)


def masked_whiten(
  values: jax.Array, mask: jax.Array, *, epsilon: float = 1e-8
) -> jax.Array:
  """Kept values moved to mean 0 and scaled to variance 1.

  y_i = (x_i - mean) / sqrt(var + epsilon)

  The statistics are over all kept entries of the array. Under `jax.jit` with a
  sharded batch that is the whole batch, on every device and process.

  Args:
    values: Numbers, any shape.
    mask: Which values to keep, same shape, bool.
    epsilon: Floor of the variance, > 0. It keeps the gradient finite when all
      kept values are equal.

  Returns:
    Same shape, float32, 0 at dropped entries. Equal values become exactly 0.

  Raises:
    AssertionError: If the shapes differ or the mask is not boolean.
  """
  scale = jax.lax.rsqrt(masked_var(values, mask) + epsilon)
  return keep(_center(values, mask, None) * scale, mask)


def _count(mask: jax.Array, axis: Axis, keepdims: bool = False) -> jax.Array:
  """How many entries are kept, at least 1. Counted as integers: exact."""
  kept = jnp.sum(mask, axis=axis, dtype=jnp.int32, keepdims=keepdims)
  return jnp.maximum(kept, 1).astype(jnp.float32)


def _center(values: jax.Array, mask: jax.Array, axis: Axis) -> jax.Array:
  """Kept values minus their mean over the axes, 0 where dropped.

  The mean is taken of the distance to one of the values. Rounding is then
  relative to the spread and not to the size, and equal values, which have a
  rounded mean that differs from them, come out as exactly 0.
  """
  kept = keep(values, mask)
  largest = jnp.max(jnp.where(mask, kept, -jnp.inf), axis=axis, keepdims=True)
  some = jnp.any(mask, axis=axis, keepdims=True)
  # Any constant gives the same mean, so no gradient belongs to the choice.
  pivot = jax.lax.stop_gradient(jnp.where(some, largest, 0.0))
  offsets = keep(kept - pivot, mask)
  offset_mean = jnp.sum(offsets, axis=axis, keepdims=True) / _count(
    mask, axis, keepdims=True
  )
  return keep(offsets - offset_mean, mask)


def longest(mask: jax.Array) -> jax.Array:
  """Entries that are kept of the sequence with the most, for each row.

  Args:
    mask: `[B, G, T]`, bool: G sequences in each row.

  Returns:
    `[B]`, int32.
  """
  return jnp.max(jnp.sum(mask, axis=-1), axis=-1)
