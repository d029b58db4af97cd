"""A thread that sends the lines of one run to one tracker."""

import contextlib
import dataclasses
import json
import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import files, json_text
from perl_jax.reporting.trackers import clients

METRICS, CONFIG, SUMMARY = "metrics.jsonl", "config.json", "summary.json"
# How long after a failure it is tried again, for the first time and later.
RETRY_SECONDS = (5.0, 60.0)
# Least seconds between two requests.
SEND_SECONDS = 1.0
_ROWS = 200
_SECRET = re.compile(r"(?<=//)[^/@\s\"']+@")


@dataclasses.dataclass(frozen=True)
class Tracking:
  """What a user asks for.

  Attributes:
    names: Keys of `clients.CLIENTS`.
    project: See `clients.Start`.
    run: Name of the run.
    group: Pipeline that the run is a stage of, or "".
    task: Name of the task.
    samples: Whether samples may be sent.
    goes_on: Whether a run that is started again in its workdir is the same one.
      An evaluation that is made again is another one.
  """

  names: tuple[str, ...]
  project: str
  run: str
  group: str
  task: str
  samples: bool
  goes_on: bool


class State:
  """`trackers.json`, {tracker: {"id", "step", "lines", "complete"}}."""

  def __init__(self, path: Path):
    self._path, self._lock = path, threading.Lock()
    self._values: dict[str, Any] | None = None

  def of(self, name: str) -> dict[str, Any]:
    """What is known of a tracker."""
    with self._lock:
      found = self._read().get(name)
    return dict(found) if isinstance(found, Mapping) else {}

  def note(self, name: str, **values: Any) -> None:
    """Writes what has become of a tracker, beside what is known of it."""
    with self._lock:
      before = self._read().get(name)
      before = before if isinstance(before, Mapping) else {}
      self._values = self._read() | {name: {**before, **values}}
      # The run itself says that its disk is full.
      with contextlib.suppress(OSError):
        files.write_json(self._path, self._values)

  def clear(self) -> None:
    """Forgets all of them; the file goes with the next note."""
    with self._lock:
      self._values = {}

  def _read(self) -> dict[str, Any]:
    if self._values is None:
      self._values = json_text.object_or_none(self._path)
      if self._values is None:
        if self._path.exists():
          logging.warning(
            "%s is damaged: the trackers get the run as a new one.", self._path
          )
        self._values = {}
    return self._values


class Sender(threading.Thread):
  """Sends the lines of one run to one tracker.

  Attributes:
    wake: Set when there is something to do.
    sent_all: Whether it has ended with nothing left.
    given_up: Set when nobody waits for it any more: it sends nothing then.
  """

  def __init__(
    self, name: str, workdir: Path, tracking: Tracking, state: State
  ):
    super().__init__(name=name, daemon=True)
    self.wake, self.sent_all = threading.Event(), False
    self.given_up = threading.Event()
    self._workdir, self._tracking, self._state = workdir, tracking, state
    self._client: clients.Client | None = None
    noted = state.of(name)
    if noted.get("project", tracking.project) != tracking.project:
      noted = {}  # the other project has no run of that id
    self._known = noted.get("id")
    self._offset, self._skip = 0, _Position(noted)
    self._ending: str | None = None
    self._texts: dict[str, str] = {}
    self._silent = False

  def end(self, state: str, texts: dict[str, str]) -> None:
    """Tells the thread to send what is left, and to end."""
    self._ending, self._texts = state, texts
    self.wake.set()

  def run(self) -> None:
    """Sends until it is told to end; what fails is tried again."""
    while not self.given_up.is_set():
      ending = self._ending
      try:
        self._send()
        if ending is not None:
          if not self.given_up.is_set():
            self._finish(ending)
            self.sent_all = True
          return
        if self._silent:
          logging.info("%s is there again.", self.name)
        self._silent, wait = False, None
      except Exception as error:
        wait = RETRY_SECONDS[self._silent]
        self._fail(error)
        if ending is not None:
          return
      self._wait(wait)

  def _wait(self, seconds: float | None) -> None:
    """Waits for new lines, or for so long; an end is never waited for."""
    if seconds is None:
      self.wake.wait()
      seconds = SEND_SECONDS
    until = time.monotonic() + seconds
    while self._ending is None and time.monotonic() < until:
      time.sleep(min(0.1, seconds))
    self.wake.clear()

  def _send(self) -> None:
    """Sends all lines that are complete."""
    if self._client is None:
      self._open()
    while (rows := self._rows()) and not self.given_up.is_set():
      if rows.found:
        self._client.log(rows.found)
      self._offset, self._skip = rows.offset, rows.position
      self._state.note(self.name, **rows.position.noted())

  def _open(self) -> None:
    known = self._known
    start = clients.Start(
      project=self._tracking.project,
      name=self._tracking.run,
      group=self._tracking.group,
      task=self._tracking.task,
      workdir=self._workdir,
      known=known if isinstance(known, str) else None,
    )
    client = clients.CLIENTS[self.name](start)
    if self.given_up.is_set():
      return
    self._known = client.id
    self._state.note(
      self.name,
      id=self._known,
      project=self._tracking.project,
      complete=False,
    )
    client.configure(flat_config(self._workdir / CONFIG))
    self._client, place = client, without_passwords(client.place)
    logging.info("%s: %s", self.name, place)

  def _rows(self) -> "_Rows | None":
    """The next lines; None if there are none."""
    try:
      with (self._workdir / METRICS).open("rb") as file:
        file.seek(self._offset)
        lines = [line for line, _ in zip(file, range(_ROWS))]
    except FileNotFoundError:
      return None
    if lines and not lines[-1].endswith(b"\n"):
      lines.pop()
    if not lines:
      return None
    position, found = self._skip, []
    for line in lines:
      row = json.loads(line)
      step = row.pop("step")
      position, is_new = position.after(step)
      if is_new:
        scalars = {name: float(value) for name, value in row.items()}
        found.append(clients.Row(step, scalars))
    offset = self._offset + sum(map(len, lines))
    return _Rows(found, offset, position)

  def _finish(self, state: str) -> None:
    if state == "finished":
      step = self._skip.step
      summary = json.loads(self._texts.get(SUMMARY, "{}"))
      scalars = {
        f"summary/{name}": float(value)
        for name, value in summary.items()
        if _is_number(value)
      }
      if scalars:
        self._client.log([clients.Row(max(step, 0), scalars)])
      with tempfile.TemporaryDirectory() as directory:
        paths = []
        for name, text in self._texts.items():
          paths.append(Path(directory) / name)
          paths[-1].write_text(text, encoding="utf-8", errors="replace")
        self._client.upload(paths)
        self._client.close(state)  # has read the files
      self._state.note(self.name, complete=True)
      return
    self._client.close(state)

  def _fail(self, error: Exception) -> None:
    if not self._silent and not self.given_up.is_set():
      said = f"{type(error).__name__}: {error}"
      said = " ".join(without_passwords(said).split())
      again = "tried again in {:.0f} s, then every {:.0f} s".format(
        *RETRY_SECONDS
      )
      if self._ending is not None:
        again = "the run has ended"
      logging.warning("%s failed, %s: %s", self.name, again, said[:300])
    self._silent, self._client = True, None


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Lines that were read: what is new, and where reading goes on."""

  found: Sequence[clients.Row]
  offset: int
  position: "_Position"


class _Position:
  """How far a tracker has got: so many lines of a step, all of those before.

  A run that goes on from a checkpoint writes the lines since then again.
  """

  def __init__(self, noted: Mapping[str, Any], seen: tuple[int, int] = (-1, 0)):
    """`noted` has "step" and "lines"; `seen` is the same of what was read."""
    step, lines = noted.get("step"), noted.get("lines")
    whole = type(step) is int and type(lines) is int
    self.step, self.lines = (step, lines) if whole else (-1, 0)
    self._seen = seen

  def after(self, step: int) -> tuple["_Position", bool]:
    """The position behind a line of a step, and whether the line is new."""
    seen = (step, self._seen[1] + 1 if step == self._seen[0] else 1)
    is_new = seen > (self.step, self.lines)
    best = seen if is_new else (self.step, self.lines)
    return _Position({"step": best[0], "lines": best[1]}, seen), is_new

  def noted(self) -> dict[str, int]:
    """What `trackers.json` has of it."""
    return {"step": self.step, "lines": self.lines}


def without_passwords(text: str) -> str:
  """A text without the names and passwords of its URLs."""
  return _SECRET.sub("", text)


def flat_config(path: Path) -> dict[str, Any]:
  """Fields of a config.json by dotted name; none if there is no such file."""
  found: dict[str, Any] = {}

  def add(values, above):
    for key, value in values.items():
      if isinstance(value, Mapping):
        add(value, f"{above}{key}.")
      else:
        plain = without_passwords(value) if isinstance(value, str) else value
        found[f"{above}{key}"] = plain

  add(json_text.object_or_none(path) or {}, "")
  return found


def _is_number(value: object) -> bool:
  if isinstance(value, str):
    return value in ("nan", "inf", "-inf")
  return isinstance(value, int | float)
