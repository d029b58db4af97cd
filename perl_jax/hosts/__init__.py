"""Processes on several hosts that form one run: start, barriers, gather, end.

Each host runs the same command, and the same code runs everywhere: all
processes see the same config, take the same decisions and call the same
compiled functions in the same order. What may differ is in this room:

  processes   `join`, `barrier`, `on_primary`, `fail`: joining the run, waiting
              for each other, and ending all processes when one fails
  signals     being told to stop
  environment variables that a run cannot do with
  arrays      `to_host`: whole NumPy copies of arrays that are spread over
              hosts; `from_primary`, `content_from_primary`, `first_message`:
              what one process knows, on all

With a single process they work as well, at no cost.
"""

from perl_jax.hosts.arrays import (
  content_from_primary,
  first_message,
  from_primary,
  to_host,
)
from perl_jax.hosts.processes import (
  barrier,
  decided_by_primary,
  end,
  fail,
  is_primary,
  join,
  leave,
  on_primary,
  pass_on,
  passed_on,
  primary_first,
  say,
  sees,
  undone_by_others,
)

__all__ = [
  "barrier",
  "content_from_primary",
  "decided_by_primary",
  "end",
  "fail",
  "first_message",
  "from_primary",
  "is_primary",
  "join",
  "leave",
  "on_primary",
  "pass_on",
  "passed_on",
  "primary_first",
  "say",
  "sees",
  "to_host",
  "undone_by_others",
]
