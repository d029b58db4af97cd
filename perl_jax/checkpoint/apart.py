"""State of a run of which process 0 alone has the checkpoints.

Orbax writes a checkpoint by all processes, to a directory that all of them see.
Where they see none, process 0 writes all of it and reads it for the others.
"""

from typing import Any

import jax
import numpy as np

from perl_jax import hosts
from perl_jax import params as params_lib

# What process 0 sends of an array at once; a device holds it several times.
_SENT_BYTES = 2**24


def gathered(tree: Any) -> Any:
  """A tree of arrays as whole NumPy arrays on process 0, piece by piece.

  All processes have to call it, in the same order.

  Args:
    tree: Arrays on the devices of all processes.

  Returns:
    The tree on process 0; elsewhere one of None.
  """

  def whole(leaf):
    made, start = None, 0
    if hosts.is_primary():
      made = np.empty(leaf.shape, leaf.dtype)
    for piece in params_lib.pieces(leaf):
      found = hosts.to_host(piece)
      if made is not None:
        rows = slice(start, start + len(found)) if leaf.ndim else ...
        made[rows] = found
        start += len(found) if leaf.ndim else 0
    return made

  return jax.tree.map(whole, tree)


def spread(tree: Any, like: Any) -> Any:
  """A tree of process 0 as arrays on the devices of all processes.

  All processes have to call it, in the same order.

  Args:
    tree: NumPy arrays on process 0; elsewhere it is not looked at.
    like: Tree of arrays, or `jax.ShapeDtypeStruct`, with the shapes, dtypes and
      shardings that the leaves get.
  """
  leaves, structure = jax.tree.flatten(like)
  mine = structure.flatten_up_to(tree) if hosts.is_primary() else leaves

  def placed(leaf, like):
    whole = np.empty(like.shape, like.dtype)
    if hosts.is_primary():
      whole[...] = leaf
    content = whole.reshape(-1).view(np.uint8)
    for start in range(0, len(content), _SENT_BYTES):
      piece = content[start : start + _SENT_BYTES]
      piece[:] = hosts.from_primary(piece)
    return jax.make_array_from_callback(
      like.shape, like.sharding, lambda index: whole[index]
    )

  return structure.unflatten(map(placed, mine, leaves))


def on_host(like: Any) -> Any:
  """What Orbax reads whole NumPy arrays by, of no memory of their own."""
  return jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like
  )
