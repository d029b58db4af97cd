"""The mesh, and placement on it: parameters by path, batches by row."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax.sharding.rules import AXES, BATCH_AXES, path_string, spec_for


def make_mesh(
  *, data: int, fsdp: int, tensor: int, devices: Iterable[Any] | None = None
) -> Mesh:
  """Makes a mesh with the axes "data", "fsdp" and "tensor".

  Args:
    data, fsdp, tensor: Sizes of the axes. One may be -1, which takes the
      devices that are left. If the product is below the number of devices, the
      first devices are used.
    devices: Devices to use; all by default.

  Raises:
    ValueError: The sizes need more devices than there are, or the devices that
      are left do not divide.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor]
  known = int(np.prod([s for s in sizes if s != -1]))
  if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  product = int(np.prod(sizes))
  if min(sizes) < 1 or product > len(devices):
    raise ValueError(
      f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit"
      f" {len(devices)} devices; the product must not be above that number,"
      " and at most one size may be -1, which takes what is left."
    )
  return jax.make_mesh(
    tuple(sizes),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices[:product],
  )


def shardings(mesh: Mesh, tree: Any) -> Any:
  """A `NamedSharding` for each leaf of a parameter or optimiser tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, spec_for(path_string(path), np.ndim(leaf))
    ),
    tree,
  )


def place(mesh: Mesh, tree: Any, *, share: bool = False) -> Any:
  """Copies host or device arrays to the shardings of the path rules.

  Args:
    mesh: Mesh to place them on.
    tree: Nested dicts of arrays.
    share: Whether a leaf that has its sharding already is returned as it is,
      for trees that no step donates, such as a frozen base. Otherwise the copy
      never shares buffers with `tree`, so that a step may donate one of them.
  """

  def put(leaf, sharding):
    if share and isinstance(leaf, jax.Array) and leaf.sharding == sharding:
      return leaf
    if not sharding.is_fully_addressable:
      return _put_across(leaf, sharding)
    placed = jax.device_put(leaf, sharding, may_alias=False)
    if isinstance(leaf, jax.Array) and leaf.sharding != sharding:
      # Spread over more devices, the shard of the one that has it already is
      # shared after all.
      placed = jnp.copy(placed)
    return placed

  return jax.tree.map(put, tree, shardings(mesh, tree))


def _put_across(leaf: Any, sharding: NamedSharding) -> jax.Array:
  """`place` of a leaf on several hosts: each has all of it, or its part."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return jnp.copy(jax.device_put(leaf, sharding))
  array = np.asarray(jax.device_get(leaf))
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def held_shards(mesh: Mesh) -> tuple[tuple[int, ...], int]:
  """Returns (indices of the batch shards of this process, number of shards).

  Processes that split only "tensor" hold the same shards.
  """
  mine = jax.process_index()
  shards = mesh.devices.reshape(-1, mesh.shape["tensor"])
  held = tuple(
    number
    for number, devices in enumerate(shards)
    if any(device.process_index == mine for device in devices)
  )
  return held, len(shards)


def place_batch(mesh: Mesh, batch: Any) -> Any:
  """Places the rows of this process as a batch that is split over the mesh.

  Args:
    mesh: Mesh to place it on.
    batch: Host arrays with the rows of the shards that this process holds, in
      their order.

  Raises:
    ValueError: The batch does not divide by the number of batch shards.
  """
  held, shards = held_shards(mesh)
  sharding = NamedSharding(mesh, P(BATCH_AXES))

  def put(leaf):
    if len(leaf) % len(held):
      raise ValueError(
        f"A batch of {len(leaf) * shards // len(held)} rows does not divide"
        f" over mesh.data * mesh.fsdp = {shards}; change batch_size or the"
        " mesh."
      )
    whole = (len(leaf) // len(held) * shards, *leaf.shape[1:])
    return jax.make_array_from_process_local_data(
      sharding, np.asarray(leaf), whole
    )

  return jax.tree.map(put, batch)


def place_whole(mesh: Mesh, batch: Any) -> Any:
  """`place_batch` of a batch of which every process has all rows."""
  sharding = NamedSharding(mesh, P(BATCH_AXES))
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    ),
    batch,
  )


def strided_parts(batch: Any, count: int) -> Any:
  """Cuts a batch into microbatches, `[count, B / count, ...]`.

  Row r is in microbatch r mod `count`. The cut is strided so that each
  microbatch is spread over all devices of the batch.
  """
  return jax.tree.map(
    lambda x: x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )


def local_rows(mesh: Mesh, tree: Any) -> Any:
  """Inverse of `place_batch`: the rows of this process, as NumPy arrays."""
  rows = NamedSharding(mesh, P(BATCH_AXES))

  def mine(leaf):
    # The compiler may have laid a result out in another way.
    shards = jax.device_put(leaf, rows).addressable_shards
    parts = {shard.index[0].start or 0: shard.data for shard in shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(mine, tree)
