"""SIGTERM, SIGINT and SIGHUP: a process is told to stop, and may finish first.

A scheduler that wants its machine back sends SIGTERM and waits for a while; a
terminal sends SIGINT (Ctrl-C) or, when it is closed, SIGHUP; a batch system may
send SIGUSR1, SIGUSR2 or SIGXCPU, which are heard as well where nobody else has
a handler for them: see `starting.heard`. The first of them
raises `Stopped` in the main thread or, where `deferred` is entered, waits until
`told` is asked. The second ends the process at once, unless it is the same
request once more: systemd sends SIGTERM and SIGHUP together, and what a service
manager sends to all processes is passed on by a parent as well. A second Ctrl-C
is always another request.

Python calls a handler only between two of its instructions, and XLA may compile
for minutes within one. A thread therefore reads the signals too: it ends a
process that has nothing to finish, and says what is waited for.

A handler is called wherever the main thread happens to be, also in a finalizer
or a callback of the garbage collector, out of which no exception comes. The
thread sees that `Stopped` got lost, and has it raised again. Where another
error came of it, as of a lock that was just being taken, it is raised instead.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from perl_jax import starting
from perl_jax.hosts import processes
from perl_jax.starting import STATUS

# Seconds that the main thread has to answer before the other one does.
_PATIENCE = 3.0
# Seconds after which it is looked whether `Stopped` got lost.
_AGAIN = 0.5
# Seconds in which another signal than SIGINT is the request of the first.
_SAME_SECONDS = 5.0


class Stopped(BaseException):
  """A run was told to stop; no `except Exception` holds it up.

  Attributes:
    by: Name of the signal, or of what else told it.
    together: Whether all processes of the run have stopped alike.
    then: What is left to do, a sentence; "" for the same command again.
    answered: Whether somebody acts on it: an error is then one of its own.
  """

  answered = False

  def __init__(
    self, by: str, what: str = "", *, together: bool = False, then: str = ""
  ):
    """Says in a sentence what was done about it.

    Args:
      by: See the attributes.
      what: What was saved where, in words that follow "Stopped by SIGTERM".
      together: See the attributes.
      then: See the attributes.
    """
    super().__init__(f"Stopped by {by}{what or ', nothing had to be saved'}.")
    self.by, self.together, self.then = by, together, then


class _Told:
  """What this process has been told.

  Attributes:
    first: Name of the first signal, or "".
    count: How many signals there were.
    sent: How many more were sent by this process to itself.
    again: Whether the next signal is one of these.
    heard: Set once the main thread has acted on the first.
    over: Set once the run has ended.
    ending: Held while that is set, or such a signal is sent.
  """

  def __init__(self):
    self.first, self.count, self.sent, self.again = "", 0, 0, False
    self.heard, self.over = threading.Event(), threading.Event()
    self.ending = threading.Lock()


_told, _deferred, _interrupting = _Told(), 0, False


def told() -> str:
  """Name of the signal that told this process to stop, or ""."""
  if _told.first:
    _told.heard.set()
  return _told.first


def stop_if_told() -> None:
  """Raises `Stopped` if a signal has been waiting to be asked for."""
  if told():
    raise Stopped(told())


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """In the block a first signal raises nothing: `told` has to be asked.

  Where nobody has asked, it is raised after the outermost of such blocks, but
  for one that fails, or that is entered while an error is handled.
  """
  global _deferred
  _deferred += 1
  try:
    yield
  finally:
    _deferred -= 1
  waits = _told.first and not _told.heard.is_set()
  if waits and not _deferred and sys.exc_info()[1] is None:
    stop_if_told()


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
  """In the block a first signal raises `Stopped` in spite of `deferred`."""
  global _interrupting
  _interrupting = True
  try:
    stop_if_told()
    with _instead_of_errors():
      yield
  finally:
    _interrupting = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Handles the signals in the block; to be entered by the main thread.

  Signals that the process was started to ignore, as by `nohup`, stay ignored.
  """
  global _told
  numbers = starting.heard()
  terminals = [stream for stream in (1, 2) if os.isatty(stream)]
  told = _told = _Told()

  def handle(number, frame):
    del frame
    name = signal.Signals(number).name
    if name == "SIGHUP":
      _close(terminals)
    again, told.again = told.again, False
    if not again:
      told.count += 1
      told.first = told.first or name
    # The thread answers a second one.
    first = again or told.count == 1
    if first and (_interrupting or not _deferred):
      if again and _origin(sys.exc_info()[1]):
        return
      told.heard.set()
      raise Stopped(told.first)

  before = {number: signal.signal(number, handle) for number in numbers}
  read, write = os.pipe()
  os.set_blocking(write, False)
  wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  thread = threading.Thread(
    target=_listen, args=(read, set(numbers), told), name="signals", daemon=True
  )
  thread.start()
  try:
    with _instead_of_errors():
      yield
  finally:
    with told.ending:
      told.over.set()
    told.heard.set()
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
      also = signal.Signals(number).name in starting.ALSO
      # One that the user's code has put there meanwhile stays.
      if not also or signal.getsignal(number) is handle:
        signal.signal(number, handler)
    os.close(write)  # the thread reads the end of it
    thread.join()
    _told = _Told()


@contextlib.contextmanager
def _instead_of_errors() -> Iterator[None]:
  """Raises a `Stopped` that nobody has answered instead of what came of it."""
  try:
    yield
  except Exception as error:
    stopped = _origin(error)
    if stopped is None or stopped.answered:
      raise
    raise stopped from None


def end_blocks(stopped: Stopped) -> None:
  """Ends the blocks that it has interrupted when they were just entered.

  Their `__exit__` is not called: they end as their generators are collected,
  which the frames of the traceback hold.
  """
  traceback.clear_frames(stopped.__traceback__)


def _origin(error: BaseException | None) -> Stopped | None:
  """The `Stopped` in the handling of which an error was raised, or itself."""
  while error is not None and not isinstance(error, Stopped):
    error = error.__cause__ or error.__context__
  return error


def _close(terminals: list[int]) -> None:
  """Writes to a terminal that is gone would fail; they are dropped."""
  with open(os.devnull, "wb") as nowhere:
    for stream in terminals:
      os.dup2(nowhere.fileno(), stream)


def _listen(read: int, numbers: set[int], told: _Told) -> None:
  """Reads signals from a pipe as they come, until it is closed."""
  seen, ours, begun = 0, 0, 0.0
  with os.fdopen(read, "rb", buffering=0) as pipe:
    while found := pipe.read(1):
      if found[0] not in numbers:
        continue
      if ours < told.sent:
        ours += 1
        continue
      seen += 1
      name = signal.Signals(found[0]).name
      if seen > 1:
        if _is_same(found[0], time.monotonic() - begun):
          continue
        processes.leave(
          f"{name} after {told.first}: left at once. The same command goes on"
          " from the last checkpoint.",
          128 + found[0],
          at_once=True,
        )
      begun = time.monotonic()
      told.first = told.first or name
      processes.pass_on(name)
      threading.Thread(
        target=_answer, args=(told, found[0]), daemon=True
      ).start()


def _is_same(number: int, seconds: float) -> bool:
  """Whether a signal that comes so long after the first is the same request."""
  if number == getattr(signal, "SIGXCPU", None):
    return True  # it comes each second of computing
  return number != signal.SIGINT and seconds < _SAME_SECONDS


def _answer(told: _Told, number: int) -> None:
  """Speaks where the main thread is too busy to, and asks it again and again.

  Args:
    told: What the process has been told.
    number: Number of the first signal.
  """
  if told.heard.wait(_PATIENCE):
    while not told.over.wait(_AGAIN):
      with told.ending:
        if not told.over.is_set() and (_interrupting or not _deferred):
          told.again = True
          told.sent += 1
          _thread.interrupt_main(number)
    return
  if not _deferred:
    processes.leave(str(Stopped(told.first)), STATUS)
  processes.say(
    f"{told.first}: what is under way is finished and saved first; a second"
    f" Ctrl-C, or any signal {_SAME_SECONDS:g} s after the first, leaves at"
    " once."
  )
