"""Sends what a run writes to its trackers, and never holds it up.

The lines of metrics.jsonl are what a tracker gets: each has a thread that reads
them and notes in `trackers.json` how far it has come, and the id of the
tracker's run. A tracker that fails is said in one line and tried again from
where it was, see `sending.RETRY_SECONDS`; the same command run again sends what
is missing in the end.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from perl_jax.reporting.trackers import sending
from perl_jax.reporting.trackers.sending import Tracking

STATE_FILE = "trackers.json"
SAMPLES = "samples.jsonl"
# Longest wait at the end of a run, by how it has ended.
CLOSE_SECONDS = {"finished": 30.0, "stopped": 5.0, "failed": 5.0}

_open: dict[Path, "Session"] = {}


@contextlib.contextmanager
def opened(workdir: Path, tracking: Tracking | None) -> Iterator["Session"]:
  """A session that a Writer of the workdir finds, closed at the end.

  Args:
    workdir: Workdir of the run.
    tracking: What is asked for; None gives a session that does nothing.
  """
  session = Session(workdir, tracking)
  key = workdir.absolute()
  if tracking is not None:
    _open[key] = session
  state = "stopped"  # what is no Exception tells a run to stop
  try:
    yield session
    state = "finished"
  except Exception:
    state = "failed"
    raise
  finally:
    _open.pop(key, None)
    session.close(state)


def find(workdir: Path) -> "Session | None":
  """The open session of a workdir."""
  return _open.get(workdir.absolute())


class Session:
  """The trackers of one workdir.

  Attributes:
    texts: Files to send that are not in the workdir, by name.
  """

  def __init__(self, workdir: Path, tracking: Tracking | None):
    """Does nothing yet."""
    self.texts: dict[str, str] = {}
    self._workdir, self._tracking = workdir, tracking
    self._senders: list[sending.Sender] = []
    self._state = sending.State(workdir / STATE_FILE)

  def begin(self) -> None:
    """Called when metrics.jsonl is open: sends what comes from now on."""
    if self._tracking is None or self._senders:
      return
    if not self._tracking.goes_on:
      self._state.clear()
    self._start()

  def wrote(self) -> None:
    """Called when there are new lines."""
    for sender in self._senders:
      sender.wake.set()

  @property
  def pending(self) -> bool:
    """Whether a tracker has not got all of the run."""
    if self._tracking is None:
      return False
    names = self._tracking.names
    complete = (self._state.of(name).get("complete") for name in names)
    return bool(self._senders) or not all(complete)

  def close(self, state: str) -> None:
    """Sends what is left, and waits for it `CLOSE_SECONDS`.

    Args:
      state: "finished", "stopped" or "failed".
    """
    if not self._senders and state == "finished" and self.pending:
      self._start()
    until = time.monotonic() + CLOSE_SECONDS[state]
    for sender in self._senders:
      sender.end(state, self._texts())
    for sender in self._senders:
      sender.join(max(0.0, until - time.monotonic()))
      sender.given_up.set()
      if not sender.sent_all:
        logging.warning(
          "%s has not got all of %s: the same command sends the rest.",
          sender.name,
          self._workdir,
        )

  def _start(self) -> None:
    for name in self._tracking.names:
      sender = sending.Sender(name, self._workdir, self._tracking, self._state)
      self._senders.append(sender)
      sender.start()

  def _texts(self) -> dict[str, str]:
    """The artifacts, by name."""
    names = (sending.CONFIG, sending.SUMMARY)
    if self._tracking.samples:
      names = (*names, SAMPLES)
    found = dict(self.texts)
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        found[name] = (self._workdir / name).read_text(encoding="utf-8")
    return {
      name: sending.without_passwords(text) for name, text in found.items()
    }
