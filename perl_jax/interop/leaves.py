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
  *,
  mesh: Mesh,
  storage: Storage,
) -> dict[str, Any]:
  """The tree of the leaves, on the mesh.

  Args:
    shapes: Shape of each leaf, by path.
    read: `read(path, bounds, dtype)` returns a part of a leaf. All parts of a
      leaf are asked for before those of the next.
    mesh: Mesh for the leaves, sharded by `sharding.RULES`.
    storage: Converts each leaf to the dtype it is kept in before the next is
      read.
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
    stored = storage.put(path, jax.block_until_ready(leaf))
    leaves[path] = sharding.place(mesh, {path: stored}, share=True)[path]
    parts.clear()
  return params_lib.unflatten(leaves)
