"""The report of a run that is still going, written anew at its evaluations."""

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from perl_jax import hosts
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.training.workdir import CONFIG_FILE

# A report costs a second: it is written after this time, in seconds, since the
# start or the last one, and takes no more than this share of the time.
LEAST_SECONDS = 30.0
MOST_SHARE = 0.05


class Live:
  """Writes the report of a run from time to time."""

  def __init__(
    self,
    write: Callable[[], object],
    clock: Callable[[], float] = time.monotonic,
  ):
    """Begins to count the time.

    Args:
      write: Writes the report.
      clock: Returns seconds.
    """
    self._write, self._clock = write, clock
    self._begun, self._wait = clock(), LEAST_SECONDS
    self._last = self._begun
    self.written = False

  def evaluated(self) -> None:
    """Writes it if it is time to, after an evaluation."""
    if self._clock() - self._last >= self._wait:
      self.rewrite()

  def seconds(self) -> float:
    """Since it began."""
    return self._clock() - self._begun

  def rewrite(self) -> None:
    """Writes it; a run goes on without one that cannot be written."""
    begun = self._clock()
    try:
      self._write()
      self.written = True
    except Exception as error:
      logging.warning(
        "The report of the run so far could not be written: %s: %s",
        type(error).__name__,
        error,
      )
    self._last = self._clock()
    self._wait = max(LEAST_SECONDS, (self._last - begun) / MOST_SHARE)


_LIVE: contextvars.ContextVar[Live | None] = contextvars.ContextVar(
  "live", default=None
)


@contextlib.contextmanager
def reported(
  write: Callable[[], object], workdir: Path | None = None
) -> Iterator[None]:
  """Stages that run in this context write a report at evaluations.

  Those of a pipeline write the pipeline's: what is around comes first. There is
  one more at the end, with all that there is then, also where an earlier
  process was killed between its summary and its report. A run of less than
  `LEAST_SECONDS` that another did not begin has none.

  Args:
    write: Writes the report of the run.
    workdir: Workdir of a stage. None for what writes its last report itself:
      then it is written again only if others were.
  """
  if _LIVE.get() is not None or not hosts.is_primary():
    yield
    return
  live = Live(write)
  again = workdir is not None and (workdir / CONFIG_FILE).exists()
  token = _LIVE.set(live)
  try:
    yield
    long = again or live.seconds() >= LEAST_SECONDS
    if live.written or (workdir and long and not has_last(workdir)):
      live.rewrite()
  finally:
    _LIVE.reset(token)


def has_last(workdir: Path) -> bool:
  """Whether the report was written after the summary."""
  try:
    written = (workdir / "report.html").stat().st_mtime_ns
    return written >= (workdir / sealed.SUMMARY).stat().st_mtime_ns
  except OSError:
    return False


def evaluated() -> None:
  """Tells the report that there is an evaluation more."""
  live = _LIVE.get()
  if live is not None:
    live.evaluated()
