"""Ends a call of the user's code that takes too long.

The call stays in the main thread, as some libraries ask for (those that set
alarms of their own). Another thread sends it SIGURG once the time is up, whose
handler raises; a sleep, a wait for a socket and a loop are ended by that.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Ignored by systems and libraries, so that one that comes late does no harm.
_SIGNAL = getattr(signal, "SIGURG", None)
# Seconds between further tries, and how many a call can ignore.
_AGAIN, _TRIES = 1.0, 60


class OutOfTime(BaseException):
  """The time is up. No `Exception`, so that `except Exception` lets it pass."""


def can_limit() -> bool:
  """Whether calls are limited here: in the main thread, not on Windows."""
  main = threading.current_thread() is threading.main_thread()
  return main and _SIGNAL is not None and hasattr(signal, "pthread_kill")


def call(act: Callable[[], T], seconds: float) -> T:
  """Calls `act` and returns its result.

  Args:
    act: What to call.
    seconds: Time of the call; 0 for no limit. There is none where `can_limit`
      is False.

  Raises:
    OutOfTime: It took longer. Its traceback tells where `act` was.
  """
  if not seconds or not can_limit():
    return act()
  caller, done = threading.get_ident(), threading.Event()

  def stop(number, frame):
    if not done.is_set():
      raise OutOfTime

  def watch():
    wait = seconds
    for _ in range(_TRIES):
      if done.wait(wait):
        return
      signal.pthread_kill(caller, _SIGNAL)
      wait = _AGAIN
    print(
      f"error: a reward function does not stop, {_TRIES} s after its time was"
      " up; the run ends without saving. The same command goes on from the last"
      " checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)

  before = signal.signal(_SIGNAL, stop)
  watcher = threading.Thread(target=watch, name="time limit", daemon=True)
  watcher.start()
  try:
    try:
      return act()
    except Exception as error:
      # It may have met a lock that was just being taken.
      late = _origin(error)
      if late is None:
        raise
      raise late from None
    finally:
      done.set()
  finally:
    done.set()
    # None: a library in C has put its own there before us.
    signal.signal(_SIGNAL, signal.SIG_DFL if before is None else before)


def _origin(error: BaseException | None) -> OutOfTime | None:
  """The `OutOfTime` in the handling of which an error was raised."""
  while error is not None and not isinstance(error, OutOfTime):
    error = error.__cause__ or error.__context__
  return error
