"""Sharding constraints inside compiled functions, on the mesh in context."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from perl_jax.sharding.rules import DECODE, Layout, path_string, spec_for


def shards(axes: Iterable[str]) -> int:
  """Number of shards of a dimension that is split over axes of the mesh."""
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  return math.prod(sizes.get(axis, 1) for axis in axes)


def spec_in(layout: Layout, path: str, shape: tuple[int, ...]) -> P:
  """The `PartitionSpec` of a leaf in a layout.

  Args:
    layout: `TRAIN` or `DECODE`.
    path: Path of the leaf, such as "layers/attention/q/kernel".
    shape: Shape of the leaf.

  Returns:
    The spec; that of `TRAIN` if the shape does not divide over the axes of
    `layout`.
  """
  rule = spec_for(path, len(shape))
  parts = {None: None, "tensor": layout.widths, "fsdp": layout.model or None}
  wanted = P(*(parts[axis] for axis in rule))
  return wanted if fitting(wanted, shape) == wanted else rule


def fitting(spec: P, shape: tuple[int, ...]) -> P:
  """`spec` without the axes that do not divide their dimension of `shape`.

  Of several axes on one dimension the last are left out first, and so is every
  axis that the mesh in context does not have.
  """
  sizes = dict(jax.sharding.get_abstract_mesh().shape)

  def fit(axes, size):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    axes = tuple(axis for axis in axes if axis in sizes)
    while size % math.prod(sizes[axis] for axis in axes):
      axes = axes[:-1]
    return axes or None

  return P(*map(fit, spec, shape))


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """Constrains the sharding of `x`, as far as its dimensions divide.

  Without a mesh, and on a mesh of one device, this is `x` itself.

  Args:
    x: Any array.
    *axes: Mesh axes of each leading dimension; the others are not split.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return x
  return jax.lax.with_sharding_constraint(x, fitting(P(*axes), x.shape))


def reshard(tree: Any, layout: Layout) -> Any:
  """Constrains a parameter tree to a layout, inside `jit`."""
  if jax.sharding.get_abstract_mesh().size <= 1:
    return tree
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.lax.with_sharding_constraint(
      leaf, spec_in(layout, path_string(path), leaf.shape)
    ),
    tree,
  )


def gathers(layout: Layout) -> bool:
  """Whether kernels in a layout are gathered before they are used."""
  return layout != DECODE and jax.sharding.get_abstract_mesh().size > 1


def gather(kernel: Any, path: str, layout: Layout) -> Any:
  """Gathers the kernel of one layer along the axes that rows are split over.

  The product with it then needs no communication. Left to itself, XLA may
  compute with one shard after the other as they arrive; on a TPU that took five
  times as long where a device has few tokens. The gradient is scattered again:
  each device keeps its shard of the sum.

  Args:
    kernel: `[in, out]`, or a quantised kernel with such leaves.
    path: Path of the kernel in the tree of parameters.
    layout: Layout that the kernel is in.
  """
  if not gathers(layout):
    return kernel

  def whole(inner, leaf):
    # Without the axis of the layers.
    rule = spec_for(path_string((path, *inner)), leaf.ndim + 1)[1:]
    kept = [axis if axis in layout.widths else None for axis in rule]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return constrain(leaf, *kept)
    return _constrain_apart(leaf, tuple(kept), tuple(rule))

  return jax.tree_util.tree_map_with_path(whole, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _constrain_apart(x, axes, gradient_axes):
  """`constrain` by some axes, and its gradient by others."""
  del gradient_axes
  return constrain(x, *axes)


def _constrain_forward(x, axes, gradient_axes):
  return _constrain_apart(x, axes, gradient_axes), None


def _constrain_backward(axes, gradient_axes, _, gradient):
  # Summed as a whole, then cut: not computed a part after the other.
  return (constrain(constrain(gradient, *axes), *gradient_axes),)


_constrain_apart.defvjp(_constrain_forward, _constrain_backward)
