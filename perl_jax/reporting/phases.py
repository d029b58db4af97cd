"""Shows what a run is busy with while it takes no steps.

    with phases.phase("scoring held-out rows", total=400) as part:
      for batch in batches:
        ...
        part.advance(8)

On a terminal a phase is a bar that is updated in place and disappears when it
ends, below the bar of the stage if there is one. Elsewhere a phase that takes
longer than `PLAIN_SECONDS` prints a line every so many seconds and one when it
ends; a shorter one prints nothing. A thread prints them, since a compiler or a
file may keep the caller busy all that time. Phases can be nested; of several,
the lines are about the innermost. Only process 0 shows any, and nothing that a
run computes depends on them.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich import progress

from perl_jax import hosts
from perl_jax.reporting import numbers, terminal
from perl_jax.reporting.console import Console

PLAIN_SECONDS = 10.0

T = TypeVar("T")


class Phase:
  """How far a phase is."""

  def __init__(self, name: str, total: int | None, clock: Callable[[], float]):
    """Starts the clock.

    Args:
      name: What is being done, such as "scoring held-out rows".
      total: Number of things to do; None if it is not known.
      clock: Returns seconds.
    """
    self.name, self.total, self.done = name, total, 0
    self.printed = False
    self._clock, self._start = clock, clock()

  def advance(self, count: int = 1) -> None:
    """Says that so many more things have been done."""
    self.done += count

  def seconds(self) -> float:
    """Seconds since the beginning."""
    return self._clock() - self._start

  def status(self) -> str:
    """`64/400  0:35 left`, or the time so far where that is not known."""
    passed = self.seconds()
    if self.total is None:
      return numbers.duration(passed)
    parts = [f"{self.done}/{self.total}"]
    if 0 < self.done < self.total:
      left = passed / self.done * (self.total - self.done)
      parts.append(f"{numbers.duration(left)} left")
    return "  ".join(parts)


class Display:
  """Shows the phases of a process."""

  def __init__(
    self,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    timer: Callable[..., threading.Timer] = threading.Timer,
  ):
    """Shows nothing yet.

    Args:
      console: Where to print; the standard output if None.
      clock: Returns seconds.
      timer: `timer(seconds, function)` makes an object that calls the function
        once, so many seconds after its `start`, unless its `cancel` is called.
    """
    self._console = console or Console()
    self._clock, self._make_timer = clock, timer
    self._open: list[Phase] = []
    self._outermost = 0  # its number
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
    """Shows a phase while the block runs; see the module."""
    found = Phase(name, total, self._clock)
    if not hosts.is_primary():
      yield found
      return
    bar = terminal.live_bar()
    if bar is not None:
      with _row(bar, found):
        yield found
    elif terminal.can_be_live(self._console):
      with (
        terminal.own_bar(self._console, name, transient=True) as bar,
        _row(bar, found),
      ):
        yield found
    else:
      with self._lines(found):
        yield found

  @contextlib.contextmanager
  def _lines(self, found: Phase) -> Iterator[None]:
    self._open.append(found)
    if len(self._open) == 1:
      self._arm()
    try:
      yield
      if found.printed:
        passed = numbers.duration(found.seconds())
        self._print(f"{found.name}  done in {passed}")
    finally:
      with self._lock:
        self._open.remove(found)
        if not self._open:
          self._timer.cancel()
          self._outermost += 1

  def _arm(self) -> None:
    tick = functools.partial(self._tick, self._outermost)
    self._timer = self._make_timer(PLAIN_SECONDS, tick)
    self._timer.daemon = True
    self._timer.start()

  def _tick(self, outermost: int) -> None:
    """Prints the innermost phase, and comes again while the outermost lasts."""
    with self._lock:
      if outermost != self._outermost:
        return  # it was too late to cancel
      found = self._open[-1]
      found.printed = True
      self._print(f"{found.name}  {found.status()}")
      self._arm()

  def _print(self, line: str) -> None:
    terminal.print_plain(self._console, line)


@contextlib.contextmanager
def _row(bar: progress.Progress, found: Phase) -> Iterator[None]:
  """A row of a live bar for the phase."""
  row = bar.add_task(found.name, total=found.total, status=found.status)
  advance = found.advance

  def advance_row(count: int = 1) -> None:
    advance(count)
    bar.update(row, completed=found.done)

  found.advance = advance_row
  try:
    yield
  finally:
    bar.remove_task(row)


_display = Display()


def phase(
  name: str, total: int | None = None
) -> contextlib.AbstractContextManager[Phase]:
  """Shows a phase while the block runs; see the module.

  Args:
    name: What is being done, such as "scoring held-out rows".
    total: Number of things to do; None if it is not known.
  """
  return _display.phase(name, total)


def track(things: Iterable[T], name: str, total: int) -> Iterator[T]:
  """Yields the things, and shows how many have been taken.

  Args:
    things: What is gone through.
    name: What is being done with them, such as "encoding prompts".
    total: Number of the things.
  """
  with phase(name, total) as part:
    for thing in things:
      yield thing
      part.advance()
