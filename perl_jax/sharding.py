"""The mesh, and path rules that say how each leaf is laid out on it.

Axes: "data" (batch), "fsdp" (batch and parameters), "tensor" (widths). One
device is the mesh (1, 1, 1), so that nothing is special about it.

Parameters have two layouts. In that of training a kernel is split over "fsdp"
along the width of the model and gathered where it is used: a little beside what
many tokens compute with it. One token a row, as in decoding, computes so little
that gathering takes most of the time: there all devices of "fsdp" and "tensor"
keep their columns of a kernel, and what they compute is gathered instead.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"


class Layout(NamedTuple):
  """Axes that activations `[B, T, width]` are split over.

  Attributes:
    rows: `B`, between the layers.
    widths: Of what a kernel gives: heads, the MLP's width, the vocabulary; so
      is the kernel.
  """

  rows: tuple[str, ...]
  widths: tuple[str, ...]

  @property
  def model(self) -> tuple[str, ...]:
    """Axes that the width of the model is split over, in parameters."""
    return () if "fsdp" in self.widths else ("fsdp",)


TRAIN = Layout(rows=BATCH_AXES, widths=("tensor",))
# "tensor" is the outer of the two: a device's columns are some of those that
# it has in training, so that only devices of one "fsdp" group exchange any.
DECODE = Layout(rows=("data",), widths=("tensor", "fsdp"))

# First match wins. Patterns are searched for in "layers/attention/q/kernel";
# paths under "layers/" have a leading layer axis.
RULES: tuple[tuple[str, P], ...] = (
  (r"(^|/)embedding$", P("tensor", "fsdp")),
  (r"(^|/)lm_head$", P("fsdp", "tensor")),
  (r"/(q|k|v|gate|up)/kernel(/qvalue)?$", P(None, "fsdp", "tensor")),
  (r"/(o|down)/kernel(/qvalue)?$", P(None, "tensor", "fsdp")),
  # Of a quantised kernel: one for a block of inputs, and few.
  (r"/(q|k|v|gate|up)/kernel/scale$", P(None, None, "tensor")),
  (r"/(o|down)/kernel/scale$", P(None, None, "fsdp")),
  (r"/(q|k|v|gate|up)/bias$", P(None, "tensor")),
  (r"/(o|down)/bias$", P()),
  # Adapters are thousands of times smaller than what they adapt.
  (r"/lora_[ab]$", P()),
  (r"norm/scale$", P()),
  (r"(^|/)head/(kernel|bias|likelihood)$", P()),
  (r"(^|/)(count|step|mini_step|gradient_step|beta)$", P()),
)


def make_mesh(
  *, data: int, fsdp: int, tensor: int, devices: Iterable[Any] | None = None
) -> Mesh:
  """A mesh; one of the sizes may be -1 ("what is left").

  Sizes whose product is below the number of devices take the first of them.

  Raises:
    ValueError: The sizes need more devices than there are, or what is left
      does not divide.
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


def path_string(path: tuple[Any, ...]) -> str:
  """A key path as "layers/attention/q/kernel"."""
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )


def spec_for(path: str, ndim: int) -> P:
  """The layout of one leaf.

  Raises:
    ValueError: No rule matches the path.
  """
  for pattern, spec in RULES:
    if re.search(pattern, path):
      return spec if ndim >= len(spec) else P()
  raise ValueError(
    f"No sharding rule matches {path!r}; add one to sharding.RULES."
  )


def shards(axes: Iterable[str]) -> int:
  """How many parts the mesh in context cuts a dimension into over some axes."""
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  return math.prod(sizes.get(axis, 1) for axis in axes)


def spec_in(layout: Layout, path: str, shape: tuple[int, ...]) -> P:
  """`spec_for` a leaf in a layout; as in training if it does not divide.

  Args:
    layout: `TRAIN` or `DECODE`.
    path: Of the leaf.
    shape: Of the leaf.
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
  """`x`, laid out on the mesh in context as far as its dimensions divide.

  Without a mesh, and on one of a single device, `x` itself.

  Args:
    x: Any array.
    *axes: Mesh axes of each leading dimension; the others are not split.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return x
  return jax.lax.with_sharding_constraint(x, fitting(P(*axes), x.shape))


def lay_out(tree: Any, layout: Layout) -> Any:
  """A parameter tree in a layout, on the mesh in context; for use in `jit`."""
  if jax.sharding.get_abstract_mesh().size <= 1:
    return tree
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.lax.with_sharding_constraint(
      leaf, spec_in(layout, path_string(path), leaf.shape)
    ),
    tree,
  )


def gather(kernel: Any, path: str, layout: Layout) -> Any:
  """The kernel of one layer, whole along the axes that hold rows in a layout.

  What is computed with it then needs no other device. Left to itself, XLA may
  compute with a part after the other as they come round: on a TPU that took
  five times as long where a device has few tokens.

  Args:
    kernel: `[in, out]`, or a quantised kernel with such leaves.
    path: Of the kernel in the tree of parameters.
    layout: That it is in.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return kernel

  def whole(inner, leaf):
    rule = spec_for(path_string((path, *inner)), leaf.ndim + 1)
    # Without the axis of the layers; in "decode" there is nothing to gather.
    axes = [axis if axis in layout.widths else None for axis in rule[1:]]
    return constrain(leaf, *axes)

  if layout == DECODE:
    return kernel
  return jax.tree_util.tree_map_with_path(whole, kernel)


def shardings(mesh: Mesh, tree: Any) -> Any:
  """A `NamedSharding` for each leaf of a parameter or optimiser tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, spec_for(path_string(path), np.ndim(leaf))
    ),
    tree,
  )


def place(mesh: Mesh, tree: Any, *, share: bool = False) -> Any:
  """Copies host or device arrays to where the rules put them.

  The copy never shares buffers with `tree`, so that a step may donate one and
  a role keep the other. With `share` a leaf that lies there already is taken as
  it is: for what no step donates, such as a frozen base.
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
  """(the shards of a batch that this process holds, how many there are).

  Processes that only split widths hold the same.
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
  """Host arrays of this process to a batch that is split over the mesh.

  Args:
    mesh: Where to.
    batch: The rows of the shards that this process holds, in their order.

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
  """`place_batch` where every process has all rows."""
  sharding = NamedSharding(mesh, P(BATCH_AXES))
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    ),
    batch,
  )


def strided_parts(batch: Any, count: int) -> Any:
  """A batch as `[count, B / count, ...]`: row r is in part r mod `count`.

  Strided, not contiguous: each part spreads over the batch's devices.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
  )


def local_rows(mesh: Mesh, tree: Any) -> Any:
  """Undoes `place_batch`: the rows of this process, on the host."""
  rows = NamedSharding(mesh, P(BATCH_AXES))

  def mine(leaf):
    # The compiler may have laid a result out in another way.
    shards = jax.device_put(leaf, rows).addressable_shards
    parts = {shard.index[0].start or 0: shard.data for shard in shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(mine, tree)
