"""A tracker in memory, which fails and hangs as it is told."""

import threading
from typing import ClassVar

import pytest

from perl_jax import metrics
from perl_jax.reporting import trackers
from perl_jax.reporting.trackers import clients, sending, session
from tests.test_metrics import plain_console


class Recorder:
  """A client; what all of its kind got is in the class.

  Attributes:
    runs: By id: rows as (step, scalars), the config, files, the last state.
    broken: How many calls fail next.
    hangs: Cleared while calls hang.
  """

  runs: ClassVar[dict] = {}
  broken = 0
  hangs = threading.Event()

  def __init__(self, start):
    self._may_fail()
    self.id = start.known or f"id{len(self.runs)}"
    self.place = "http://me:secret@somewhere/run"
    self.run = self.runs.setdefault(
      self.id, {"rows": [], "files": {}, "starts": []}
    )
    self.run["starts"].append(start)

  def configure(self, config):
    self.run["config"] = config

  def log(self, rows):
    self._may_fail()
    self.run["rows"] += [(row.step, dict(row.scalars)) for row in rows]

  def upload(self, paths):
    self.run["files"] |= {path.name: path.read_text() for path in paths}

  def close(self, state):
    self.run["state"] = state

  @classmethod
  def _may_fail(cls):
    cls.hangs.wait()
    if cls.broken:
      cls.broken -= 1
      raise ConnectionError("no way to http://me:secret@somewhere/api\n at all")


@pytest.fixture(name="recorder")
def recorder_fixture(monkeypatch):
  """`Recorder`, as the tracker "wandb", with short waits."""
  Recorder.runs, Recorder.broken = {}, 0
  Recorder.hangs.set()
  monkeypatch.setitem(clients.CLIENTS, "wandb", Recorder)
  monkeypatch.setattr(trackers, "missing", lambda names: [])
  monkeypatch.setattr(sending, "SEND_SECONDS", 0.01)
  monkeypatch.setattr(sending, "RETRY_SECONDS", (0.01, 0.01))
  yield Recorder
  Recorder.hangs.set()


def tracking(**fields):
  """What a training stage asks for."""
  return trackers.Tracking(
    **{
      "names": ("wandb",),
      "project": "",
      "run": "pipeline/rl",
      "group": "pipeline",
      "task": "rl",
      "samples": False,
      "goes_on": True,
    }
    | fields
  )


def run(workdir, steps, resume_step=0, summary=None, **fields):
  """A stage that writes a row for each step, and two where it is even.

  Without a summary it dies after its last row.
  """
  with session.opened(workdir, tracking(**fields)) as opened:
    with metrics.Writer(
      workdir, total_steps=9, resume_step=resume_step, console=plain_console()
    ) as writer:
      for step in steps:
        writer.write(step, {"train/loss": 1 / (step + 1)})
        writer.samples(step, [{"prompt": "private"}])
        if step % 2 == 0:
          writer.write(step, {"validation/loss": float("nan")})
      if summary is None:
        raise Died
      writer.summary(summary)
    opened.texts["report.html"] = "<p>report"


class Died(BaseException):
  """As a kill that was heard."""
