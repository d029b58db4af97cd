"""Hears signals while a command starts, before JAX is there.

Imported first of all by `python -m perl_jax.main`, and called by the command
`perl_jax`, this module imports nothing that takes time. A signal ends the
process with a line instead of a traceback; from `hosts.signals.handled` on the
run itself decides what to do.
"""

import os
import signal
import sys

# EX_TEMPFAIL of sysexits.h: no error, and the same command later goes on.
STATUS = 75
NAMES = ("SIGTERM", "SIGINT", "SIGHUP")


def _leave(number: int, frame: object) -> None:
  del frame
  name = signal.Signals(number).name
  said = (
    f"Stopped by {name} outside a run, nothing had to be saved. To go on, run"
    " the same command again.\n"
  )
  try:
    os.write(2, said.encode())
  finally:
    os._exit(STATUS)


def listen() -> None:
  """Handles the signals that this process was not started to ignore."""
  for name in NAMES:
    number = getattr(signal, name, None)
    if number and signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, _leave)


# Not where the command's module is imported by another program.
_command = getattr(sys.modules["__main__"], "__spec__", None)
if getattr(_command, "name", "") == "perl_jax.main":
  listen()
