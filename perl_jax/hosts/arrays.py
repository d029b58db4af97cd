"""Arrays that are spread over several hosts."""

from typing import Any

import jax
from jax.experimental import multihost_utils


def to_host(tree: Any) -> Any:
  """Copies a tree to NumPy arrays that are whole on every process.

  All processes have to call it, in the same order: arrays that are spread over
  several hosts are gathered by a collective operation.

  Args:
    tree: Arrays on the devices of one process or of several, or on the host.
  """

  def whole(leaf):
    if (
      not isinstance(leaf, jax.Array)
      or leaf.is_fully_addressable
      or leaf.is_fully_replicated
    ):
      return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.device_get(jax.tree.map(whole, tree))
