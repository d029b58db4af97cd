"""The meshes that everything is run on, and what the compiler says of them."""

import re

import jax

from perl_jax import sharding

# (data, fsdp, tensor) of what is compared with one device.
MESHES = {
  "one": (1, 1, 1),
  "data": (8, 1, 1),
  "fsdp": (1, 8, 1),
  "all": (2, 2, 2),
}
_COMPLAINT = re.compile(
  r"spmd_partitioner|shardy|rematerializ|replicat", re.IGNORECASE
)


def make_mesh(name: str) -> jax.sharding.Mesh:
  """A mesh by its name; "one" is of the first device."""
  return sharding.make_mesh(**dict(zip(sharding.AXES, MESHES[name])))


def complaints(capfd) -> list[str]:
  """What the compiler has written about layouts since the last call.

  It writes to the file descriptor of stderr, past Python.
  """
  return [
    line for line in capfd.readouterr().err.splitlines()
    if _COMPLAINT.search(line)
  ]  # fmt: skip


def require_rules(tree, mesh: jax.sharding.Mesh) -> None:
  """Every leaf lies where the rules put it, and in parts of that size."""
  wanted = sharding.shardings(mesh, tree)

  def check(path, leaf, where):
    assert leaf.sharding.is_equivalent_to(where, leaf.ndim), (
      f"{sharding.path_string(path)}: {leaf.sharding}"
    )
    shape = where.shard_shape(leaf.shape)
    assert {s.data.shape for s in leaf.addressable_shards} == {shape}

  jax.tree_util.tree_map_with_path(check, tree, wanted)
