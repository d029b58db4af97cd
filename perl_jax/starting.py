"""Hears signals while a command starts, before JAX is there.

Imported first of all by `python -m perl_jax.main`, and called by the command
`perl_jax`, this module imports nothing that takes time. A signal ends the
process with a line instead of a traceback; from `hosts.signals.handled` on the
run itself decides what to do.
"""

import atexit
import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator

from perl_jax import streams

# EX_TEMPFAIL of sysexits.h: no error, and the same command later goes on.
STATUS = 75
NAMES = ("SIGTERM", "SIGINT", "SIGHUP")
# Schedulers send these before they end a job. They are heard where nobody else
# has a use for them.
ALSO = ("SIGUSR1", "SIGUSR2", "SIGXCPU")


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


def command_line() -> str:
  """What was typed, for a shell: the same command again.

  The command `perl_jax` is named by itself. Who has it of `pipx` or `uv tool`
  has no Python that knows the package.
  """
  program = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  own = program == "perl_jax"
  start = ["perl_jax"] if own else ["python", "-m", "perl_jax.main"]
  return shlex.join([*start, *sys.argv[1:]])


def leave_last(status: int) -> None:
  """Ends the process with `status` when everything else at its end is done.

  XLA may still compute what was abandoned, for which Python would take away
  what that stands on: the process would crash, with another status.

  Args:
    status: Exit status of the process.
  """
  global _last
  _last = status


_last: int | None = None


def _at_end() -> None:
  if _last is None:
    return
  for stream in (sys.stdout, sys.stderr):
    # It may be closed, or gone.
    with contextlib.suppress(AttributeError, OSError, ValueError):
      stream.flush()
  os._exit(_last)


def begin() -> None:
  """What a command does first: it prints to anybody, and hears of signals."""
  streams.keep()
  listen()


def listen() -> None:
  """Handles the signals that this process was not started to ignore."""
  for number in heard():
    signal.signal(number, _leave)


def heard() -> list[int]:
  """Numbers of the signals by which a run is told to stop.

  Those of `NAMES` that are not ignored, and those of `ALSO` that would end the
  process: a handler of somebody else stays, as one of `faulthandler`.
  """
  theirs = _caught()
  return [
    number
    for name in (*NAMES, *ALSO)
    if (number := _number(name))
    and signal.getsignal(number) is not signal.SIG_IGN
    and (name in NAMES or _is_free(number, theirs))
  ]


def _is_free(number: int, theirs: int) -> bool:
  if signal.getsignal(number) is _leave:
    return True
  taken = bool(theirs >> (number - 1) & 1)
  return signal.getsignal(number) is signal.SIG_DFL and not taken


def _caught() -> int:
  """A bit for each signal with a handler, also one that Python did not set.

  0 where the system does not say: only Linux does.
  """
  with contextlib.suppress(OSError), open("/proc/self/status") as file:
    for line in file:
      if line.startswith("SigCgt:"):
        return int(line.split()[1], 16)
  return 0


@contextlib.contextmanager
def heard_while_busy() -> Iterator[None]:
  """In the block a signal ends the process though no handler is called.

  Python calls one between two of its instructions, and C++ may wait for minutes
  within one. A thread hears of those that `listen` handles.
  """
  main = threading.current_thread() is threading.main_thread()
  every = map(_number, (*NAMES, *ALSO))
  ours = {n for n in every if n and signal.getsignal(n) is _leave}
  if not main or not ours:
    yield
    return
  read, write = os.pipe()
  os.set_blocking(write, False)

  def hear():
    with os.fdopen(read, "rb", buffering=0) as pipe:
      while found := pipe.read(1):
        if found[0] in ours:
          _leave(found[0], None)

  thread = threading.Thread(target=hear, name="signals", daemon=True)
  before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(write)  # the thread reads the end of it
    thread.join()


def _forget() -> None:
  """Gives a forked child, as of `multiprocessing`, the handlers of Python.

  What tells it to end, or a Ctrl-C for all of a terminal, is not for the run:
  the child has inherited the pipe through which the run hears of signals.
  """
  ours = [n for n in map(_number, (*NAMES, *ALSO)) if n and _is_ours(n)]
  for number in ours:
    usual = signal.SIG_DFL
    if number == signal.SIGINT:
      usual = signal.default_int_handler
    signal.signal(number, usual)
  if ours:
    signal.set_wakeup_fd(-1)


def _number(name: str) -> int | None:
  return getattr(signal, name, None)


def _is_ours(number: int) -> bool:
  module = getattr(signal.getsignal(number), "__module__", None) or ""
  return module.startswith("perl_jax.")


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_forget)
# What is registered first is called last.
atexit.register(_at_end)
# Not where the command's module is imported by another program.
_command = getattr(sys.modules["__main__"], "__spec__", None)
if getattr(_command, "name", "") == "perl_jax.main":
  begin()
