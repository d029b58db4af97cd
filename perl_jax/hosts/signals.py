"""SIGTERM, SIGINT and SIGHUP: a process is told to stop, and may finish first.

A scheduler that wants its machine back sends SIGTERM and waits for a while, a
terminal sends SIGINT (Ctrl-C) or, when it is closed, SIGHUP. The first of them
raises `Stopped` in the main thread, or, where `deferred` is entered, waits to
be asked for by `told`. The second ends the process at once.

Python calls a handler only between two of its instructions, and XLA may compile
for minutes within one. A thread therefore reads the signals too: it ends a
process that has nothing to finish, and says what is waited for.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# sysexits.h, EX_TEMPFAIL: try again later.
STATUS = 75
NAMES = ("SIGTERM", "SIGINT", "SIGHUP")
# Seconds that the main thread has to answer before the other one speaks.
_PATIENCE = 3.0


class Stopped(BaseException):
  """The process was told to stop; no `except Exception` catches it."""


class _Told:
  """What this process has been told.

  Attributes:
    first: Name of the first signal, or "".
    count: How many signals there were.
    deferred: How many blocks are entered that ask by themselves.
    heard: Set once the main thread has acted on the first signal.
  """

  def __init__(self):
    self.first, self.count, self.deferred = "", 0, 0
    self.heard = threading.Event()


_told = _Told()


def told() -> str:
  """Name of the signal that told this process to stop, or ""."""
  if _told.first:
    _told.heard.set()
  return _told.first


def tell(name: str) -> None:
  """Does what a signal would, where the notice comes another way."""
  _told.first = _told.first or name


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """In the block nothing is raised by a first signal: it asks `told`."""
  _told.deferred += 1
  try:
    yield
  finally:
    _told.deferred -= 1


@contextlib.contextmanager
def handled(leave: Callable[[str, int], None]) -> Iterator[None]:
  """Handles the signals in the block; to be entered by the main thread.

  Signals that the process was started to ignore, as by `nohup`, stay ignored.

  Args:
    leave: `leave(message, status)` ends the process as it is, from any thread.
  """
  numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
  numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
  before = {number: signal.signal(number, _handle) for number in numbers}
  read, write = os.pipe()
  os.set_blocking(write, False)
  wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  thread = threading.Thread(
    target=_listen, args=(read, set(numbers), leave), name="signals",
    daemon=True,
  )  # fmt: skip
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(write)  # the thread reads the end of it
    thread.join()
    _told.__init__()


def _handle(number: int, frame: object) -> None:
  del frame
  _told.count += 1
  if _told.count > 1:
    return  # the thread ends the process
  name = signal.Signals(number).name
  _told.first = _told.first or name
  if not _told.deferred:
    _told.heard.set()
    raise Stopped(name)


def _listen(
  read: int, numbers: set[int], leave: Callable[[str, int], None]
) -> None:
  """Reads signals from a pipe as they come, until it is closed."""
  seen = 0
  with os.fdopen(read, "rb", buffering=0) as pipe:
    while found := pipe.read(1):
      if found[0] not in numbers:
        continue
      seen += 1
      name = signal.Signals(found[0]).name
      if seen > 1:
        leave(f"{name} again: left at once.", 128 + found[0])
      threading.Thread(target=_answer, args=(name, leave), daemon=True).start()


def _answer(name: str, leave: Callable[[str, int], None]) -> None:
  """Speaks where the main thread is too busy to."""
  if _told.heard.wait(_PATIENCE):
    return
  if not _told.deferred:
    leave(f"stopped by {name} while nothing had to be saved.", STATUS)
  print(
    f"{name}: what is under way ends first, and is saved; a second signal"
    " leaves at once.",
    file=sys.stderr,
    flush=True,
  )
