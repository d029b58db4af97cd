"""State of a run of which process 0 alone has the checkpoints.

Orbax writes a checkpoint by all processes, to a directory that all of them see.
Where they see none, process 0 writes all of it and reads it for the others.
"""

from typing import Any

import jax
import numpy as np

from perl_jax import hosts


def gathered(tree: Any) -> Any:
  """A tree of arrays as whole NumPy arrays on process 0, one after the other.

  All processes have to call it, in the same order.

  Args:
    tree: Arrays on the devices of all processes.

  Returns:
    The tree on process 0; elsewhere one of None.
  """

  def whole(leaf):
    found = hosts.to_host(leaf)
    return found if hosts.is_primary() else None

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
    content = leaf.tobytes() if hosts.is_primary() else b""
    content = hosts.content_from_primary(content)
    whole = np.frombuffer(content, like.dtype).reshape(like.shape)
    return jax.make_array_from_callback(
      like.shape, like.sharding, lambda index: whole[index]
    )

  return structure.unflatten(map(placed, mine, leaves))


def on_host(like: Any) -> Any:
  """What Orbax reads whole NumPy arrays by, of no memory of their own."""
  return jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like
  )
