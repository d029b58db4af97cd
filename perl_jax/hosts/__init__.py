"""Several processes that are one run: how they start, wait, share and end.

Each host runs the same command, and the same code runs everywhere: all
processes see the same config, take the same decisions and call the same
compiled functions in the same order. What may differ is in this room:

  processes   `join`, `barrier`, `on_primary`, `fail`: who they are, who waits
              for whom, and how one that fails ends the others
  arrays      `to_host`: values whose parts lie on several hosts

With one process each of them does what its name says at no cost.
"""

from perl_jax.hosts.arrays import to_host
from perl_jax.hosts.processes import (
  barrier,
  fail,
  is_primary,
  join,
  on_primary,
  primary_first,
  sees,
  undone_by_others,
)

__all__ = [
  "barrier",
  "fail",
  "is_primary",
  "join",
  "on_primary",
  "primary_first",
  "sees",
  "to_host",
  "undone_by_others",
]
