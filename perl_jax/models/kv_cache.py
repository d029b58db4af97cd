"""The key/value cache of a decoder, and layers split to decode with."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import sharding
from perl_jax.models import quantization
from perl_jax.models.config import ModelConfig


class Cache(NamedTuple):
  """Key/value cache of the tokens that were decoded so far.

  Attributes:
    keys: Keys of all layers, `[L, B, K, S, H]`; of a model whose layers are
      split, a tuple of L stacks of one.
    values: Values of all layers, likewise.
    positions: Position of the token in each column, `[B, S]`, int32.
    segments: Its segment, 0 where the column is empty, `[B, S]`, int32.
    length: Column that the next token is written to, the same in each row,
      int32 scalar: the number written so far, unless a caller uses the columns
      as a ring buffer.
  """

  keys: jax.Array | tuple[jax.Array, ...]
  values: jax.Array | tuple[jax.Array, ...]
  positions: jax.Array
  segments: jax.Array
  length: jax.Array

  def grown(self, columns: int) -> "Cache":
    """The same cache with further columns, which are empty."""

    def pad(array, axis):
      wider = [(0, 0)] * array.ndim
      wider[axis] = (0, columns)
      return jnp.pad(array, wider)

    return self._replace(
      keys=pad(self.keys, 3),
      values=pad(self.values, 3),
      positions=pad(self.positions, 1),
      segments=pad(self.segments, 1),
    )

  def split(self) -> "Cache":
    """The same cache for a model whose layers are split."""
    return self._replace(keys=_unstack(self.keys), values=_unstack(self.values))


def _unstack(stack: jax.Array) -> tuple[jax.Array, ...]:
  """The layers of a stack `[L, ...]` as L stacks `[1, ...]`."""
  return tuple(stack[i : i + 1] for i in range(stack.shape[0]))


def split_layers(config: ModelConfig, params: Mapping) -> dict[str, Any]:
  """Parameters whose layers are trees of their own, not slices of a stack.

  A loop that runs the model often, as decoding does, then reads each kernel
  where it is. Of a stack, platforms without products on slices copy every
  kernel each time. Kernels that are not quantised are cast to the compute
  dtype, once. The price is a second copy of the layers.

  Args:
    config: Shapes and switches of the model.
    params: Parameters of `Transformer`.

  Returns:
    {"layers_0": ..., "layers_1": ..., ...} and the leaves outside of layers;
    `Transformer` runs it with a cache that is split too.
  """

  def ready(path, leaf):
    kernel = path[-1] == jax.tree_util.DictKey("kernel")
    if kernel and not quantization.is_quantized(leaf):
      return leaf.astype(config.dtype)
    return leaf

  rest = {name: leaf for name, leaf in params.items() if name != "layers"}
  stack = jax.tree_util.tree_map_with_path(
    ready, params["layers"], is_leaf=quantization.is_quantized
  )
  return rest | {
    f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stack)
    for i in range(config.num_layers)
  }


def init_cache(config: ModelConfig, batch: int, slots: int) -> Cache:
  """An empty cache of `slots` columns in the compute dtype.

  On a mesh rows are split over "data" and "fsdp" and K/V heads over "tensor",
  each as far as it divides: a single head, or 8 heads on 16 devices of
  "tensor", are replicated.

  Args:
    config: Shapes and switches of the model.
    batch: Number of rows, `B`.
    slots: Number of columns, `S`.
  """
  shape = (
    config.num_layers,
    batch,
    config.num_kv_heads,
    slots,
    config.head_dim,
  )

  def empty():
    return sharding.constrain(
      jnp.zeros(shape, config.dtype),
      *(None, sharding.BATCH_AXES, sharding.HEAD_AXIS),
    )

  def nowhere():
    return sharding.constrain(
      jnp.zeros((batch, slots), jnp.int32), sharding.BATCH_AXES
    )

  return Cache(
    keys=empty(),
    values=empty(),
    positions=nowhere(),
    segments=nowhere(),
    length=jnp.zeros((), jnp.int32),
  )
