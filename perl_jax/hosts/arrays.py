"""Arrays that are spread over several hosts."""

from typing import Any

import jax
import numpy as np
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


def from_primary(array: np.ndarray) -> np.ndarray:
  """The array of process 0, on every process.

  All processes have to call it, in the same order.

  Args:
    array: On process 0 what is wanted, elsewhere one of the same shape and
      dtype.
  """
  if jax.process_count() == 1:
    return array
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


def content_from_primary(content: bytes) -> bytes:
  """The content that process 0 gives, on every process, of any length.

  All processes have to call it, in the same order.

  Args:
    content: On process 0 what is wanted; elsewhere it is not looked at.
  """
  if jax.process_count() == 1:
    return content
  size = int(from_primary(np.array(len(content))))
  whole = np.zeros(size, np.uint8)
  if jax.process_index() == 0:
    whole[:] = np.frombuffer(content, np.uint8)
  return from_primary(whole).tobytes() if size else b""


def first_message(message: str) -> str:
  """The message of the first process that has one, "" if none has.

  It says which process that is, unless it is this one. All processes have to
  call it, in the same order.

  Args:
    message: What this process has to say, or "". It is cut at 4 KiB.
  """
  if jax.process_count() == 1:
    return message
  mine = np.zeros(4096, np.uint8)
  text = np.frombuffer(message.encode()[: len(mine)], np.uint8)
  mine[: len(text)] = text
  every = np.asarray(multihost_utils.process_allgather(mine))
  for process, row in enumerate(every):
    said = bytes(row[row > 0]).decode(errors="replace")
    if said:
      if process == jax.process_index():
        return message
      return f"process {process} of {jax.process_count()}: {said}"
  return ""
