"""Decides, alike on all processes, when a run saves and when it stops.

Process 0 decides, by its clock and by what any process was told; its answer
goes to the others through the coordination service, so that no device waits.
All processes ask in the same order: at each step of the loop, between the
batches of an evaluation, and between the phases of an iteration.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from perl_jax import hosts
from perl_jax.hosts import signals
from perl_jax.tasks.settings import shared

Result = TypeVar("Result")

# Several processes ask about this often, and at least every so many steps.
_ASK_SECONDS = 0.5
_MOST_STEPS = 10
# How long to sleep while the devices compute.
_SHORTEST, _LONGEST = 0.0005, 0.05


class Stop(Exception):
  """The run is to stop here; names what told it to."""


class Watch:
  """Asked by the loop whether to save and whether to stop."""

  def __init__(
    self, saving: shared.Saving, clock: Callable[[], float] = time.monotonic
  ):
    """Starts the time until the next checkpoint.

    Args:
      saving: When to save.
      clock: Returns seconds.
    """
    self._saving, self._clock = saving, clock
    self._saved = self._asked = clock()
    self._questions = 1  # since the last answer
    self._pace = 0.0  # seconds between questions, of late the longest
    self._silent = 0  # questions that have their answer already
    self._late, self._by = False, ""  # what the answers were so far
    self._due = (0, False)  # the last step that was asked about

  def save_is_due(self, step: int) -> bool:
    """Whether to save after this step; to be asked at each of them.

    All members of a run ask, and get the answer of the first.
    """
    if self._due[0] != step:
      self._ask()
      every = self._saving.every_steps
      late = self._late or (every > 0 and step % every == 0)
      self._due = step, late
    return self._due[1]

  def look(self) -> None:
    """Raises `Stop` if the run is to stop."""
    self._ask()
    if self._by:
      raise Stop(self._by)

  def wait(self, results: Any) -> None:
    """Waits for results of the devices; `Stop` if the run is to stop before.

    Args:
      results: A tree with arrays, or what says as they do whether it is there.
    """
    self._ask(results)
    if self._by:
      raise Stop(self._by)
    jax.block_until_ready(results)

  @contextlib.contextmanager
  def interrupted(self) -> Iterator[None]:
    """Raises `Stop` in the middle of the block if this process is told to stop.

    Several processes finish it, and stop together at the next question.
    """
    if jax.process_count() > 1:
      yield
      return
    try:
      with signals.interrupting():
        yield
    except signals.Stopped as stopped:
      stopped.answered = True
      raise Stop(stopped.by) from None

  def saved(self) -> None:
    """Starts the time until the next checkpoint anew."""
    self._saved, self._late = self._clock(), False

  def _ask(self, results: Any = None) -> None:
    if self._silent and results is None:
      self._silent, self._questions = self._silent - 1, self._questions + 1
      return
    answer, silent, by = hosts.decided_by_primary(
      lambda: self._decide(results)
    ).split(":")
    self._silent, self._questions = int(silent), 1
    self._late, self._by = self._late or answer == "save", self._by or by

  def _decide(self, results: Any) -> str:
    """ "ANSWER:N:SIGNAL"; the next N questions need not be asked."""
    by = self._told(results)
    now, silent = self._clock(), 0.0
    if jax.process_count() > 1:
      # A step has two questions, with all of its seconds before one of them.
      seconds = (now - self._asked) / self._questions
      self._pace = max(seconds, 0.7 * self._pace)
      silent = min(_ASK_SECONDS / max(self._pace, 1e-6), _MOST_STEPS)
    self._asked = now
    every = self._saving.every_seconds
    late = every > 0 and now - self._saved >= every
    return f"{'save' if late else 'go'}:{int(silent)}:{by}"

  def _told(self, results: Any) -> str:
    """What tells the run to stop, if anything does before the results come."""
    left = [x for x in jax.tree.leaves(results) if hasattr(x, "is_ready")]
    pause, asked = _SHORTEST, -math.inf
    while True:
      by, now = signals.told(), time.monotonic()
      if not by and now - asked > _ASK_SECONDS:
        by, asked = hosts.passed_on(), now
      left = [] if by else [x for x in left if not x.is_ready()]
      if not left:
        return by
      time.sleep(pause)
      pause = min(1.1 * pause, _LONGEST)


class _Work:
  """Work of a thread, which is waited for as an array of the devices is.

  The process may end before the thread does.
  """

  def __init__(self, work: Callable[[], Any]):
    self._work, self._result = work, None
    self._error: BaseException | None = None
    self._thread = threading.Thread(target=self._run, name="work", daemon=True)
    self._thread.start()

  def is_ready(self) -> bool:
    return not self._thread.is_alive()

  def block_until_ready(self) -> "_Work":
    self._thread.join()
    return self

  def result(self) -> Any:
    if self._error is not None:
      raise self._error
    return self._result

  def _run(self) -> None:
    try:
      self._result = self._work()
    except BaseException as error:  # it is raised where it is waited for
      self._error = error


# Those of the loops under way: several where a run has members.
_watches: list[Watch] = []
# How many of them have a state that is not to be saved, as half is learned.
_unbroken = 0


@contextlib.contextmanager
def kept_by(watch: Watch) -> Iterator[None]:
  """In the block `look` and `wait` ask this watch, and signals wait for it."""
  _watches.append(watch)
  try:
    with signals.deferred():
      yield
  finally:
    _watches.remove(watch)


def look() -> None:
  """Raises `Stop` if a loop is under way and is to stop."""
  if _watches:
    _watches[-1].look()


def wait(results: Any) -> None:
  """Waits for results of the devices.

  Raises:
    Stop: A loop is under way and is to stop; the results are not waited for.
  """
  if _watches:
    _watches[-1].wait(results)
  else:
    jax.block_until_ready(results)


def interrupted() -> contextlib.AbstractContextManager[None]:
  """A block that ends in the middle if a loop is under way and is to stop."""
  if not _watches:
    return contextlib.nullcontext()
  return _watches[-1].interrupted()


def finished(work: Callable[[], Result]) -> Result:
  """What work returns that holds this process up for long, as compiling does.

  All processes have to call it, in the same order.

  Raises:
    Stop: A loop is under way and is to stop; the work is not waited for.
  """
  if not _watches or _unbroken:
    return work()
  under_way = _Work(work)
  _watches[-1].wait(under_way)
  return under_way.result()


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
  """In the block `finished` finishes its work in any case."""
  global _unbroken
  _unbroken += 1
  try:
    yield
  finally:
    _unbroken -= 1
