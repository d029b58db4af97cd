"""Scalars as TensorBoard events."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import summary as tensorboard_summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from perl_jax import disk


class Events:
  """A TensorBoard event file, flushed before `write` returns.

  tensorboardX's SummaryWriter hands events to a thread and names its file by
  second and host: a kill would lose what is queued, and a run that resumes
  within the second would empty the file of the run before.
  """

  def __init__(self, directory: Path, resume_step: int):
    """Opens a new file in a directory, which is made if need be.

    Args:
      directory: Where TensorBoard looks.
      resume_step: Events of earlier files at or after this step are hidden.
    """
    self._directory = directory
    with self._writing():
      directory.mkdir(parents=True, exist_ok=True)
      earlier = len(list(directory.iterdir()))
      self._writer = EventsWriter(str(directory / "events"), f".{earlier:04}")
      if earlier:
        # TensorBoard hides events at or after the step of such a restart.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=resume_step, session_log=restart)
      self._writer.flush()

  def write(self, step: int, scalars: Mapping[str, object]) -> None:
    """Writes an event for each scalar: {tag: value}."""
    with self._writing():
      for key, value in scalars.items():
        scalar = tensorboard_summary.scalar(key, float(value))
        self._add(step=step, summary=scalar)
      self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    with self._writing():
      self._writer.close()

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    return disk.writing("TensorBoard events", self._directory)

  def _add(self, **fields: object) -> None:
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._writer.write_event(event)
