"""Places the leaves of a base on a mesh, one after the other.

The host holds one leaf at a time, and each device is given its part of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.interop.storage import Storage
from perl_jax.models.config import ModelConfig

# First index and the one behind the last, of each axis.
Bounds = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Source:
  """The tensors of a file that make up one leaf.

  Attributes:
    names: Name of the tensor of each layer, or a single name.
    stacked: Whether the leaf has a layer axis.
    transposed: Whether each tensor is the transpose of its part of the leaf.
  """

  names: tuple[str, ...]
  stacked: bool
  transposed: bool

  def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each tensor of a leaf that has the shape `shape`."""
    inner = shape[1:] if self.stacked else shape
    return tuple(inner[::-1] if self.transposed else inner)


def base_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shape by path of the base tree."""
  key = jax.ShapeDtypeStruct((2,), np.uint32)
  tree = jax.eval_shape(lambda k: roles.init_base(k, config), key)
  return {p: tuple(x.shape) for p, x in params_lib.flatten(tree).items()}


def load(
  shapes: Mapping[str, tuple[int, ...]],
  read: Callable[[str, Bounds, Any], np.ndarray],
  where: Callable[[str, int], str],
  *,
  mesh: Mesh,
  storage: Storage,
) -> dict[str, Any]:
  """The tree of the leaves, on the mesh.

  Args:
    shapes: Shape of each leaf, by path.
    read: `read(path, bounds, dtype)` returns a part of a leaf. All parts of a
      leaf are asked for before those of the next.
    where: `where(path, layer)` names the file and the tensor of a layer of a
      leaf; of one without layers, 0 is given.
    mesh: Mesh for the leaves, sharded by `sharding.RULES`.
    storage: Converts each leaf to the dtype it is kept in before the next is
      read.

  Raises:
    ValueError: A number is not finite; names the file and the tensor.
  """
  dtype, leaves = jnp.dtype(storage.read_dtype), {}
  for path, shape in shapes.items():
    layout = NamedSharding(mesh, sharding.spec_for(path, len(shape)))
    parts: dict[Bounds, np.ndarray] = {}

    def part(index, path=path, shape=shape, parts=parts):
      bounds = tuple(
        s.indices(n)[:2] for s, n in zip(index, shape, strict=True)
      )
      if bounds not in parts:  # devices that hold a copy ask for the same
        parts[bounds] = read(path, bounds, dtype)
      return parts[bounds]

    leaf = jax.make_array_from_callback(shape, layout, part)
    # On the devices, as a pass of the host would take as long as to read.
    if not bool(_all_finite(leaf)):
      layer = int(_first_not_finite(leaf)) if path.startswith("layers/") else 0
      raise ValueError(
        f"{where(path, layer)} has numbers that are not finite (NaN, infinity,"
        f" or more than {dtype.name} can hold): its training diverged, or the"
        " file is damaged. Download it again, or give another checkpoint."
      )
    stored = storage.put(path, leaf)
    leaves[path] = sharding.place(mesh, {path: stored}, share=True)[path]
    parts.clear()
  return params_lib.unflatten(leaves)


@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
  # 0 times a number is 0, unless it is infinite or NaN. Several times faster on
  # a CPU than isfinite().all(), and a sum over devices keeps a NaN, where a
  # maximum need not.
  return jnp.sum(leaf * 0) == 0


@jax.jit
def _first_not_finite(leaf: jax.Array) -> jax.Array:
  """Index of the first layer with a number that is not finite."""
  return jnp.argmin(jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))))
