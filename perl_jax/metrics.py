"""Writes the metrics of a run: JSON lines, TensorBoard events, a summary.

Only process 0 writes. A stage has one `Writer` on its own directory:

  metrics.jsonl   one flat object a line: {"step": 3, "train/loss": 0.7}
  samples.jsonl   one object a line: {"step": 3, "prompt": ..., ...}
  summary.json    what the stage achieved, replaced as a whole
  tensorboard/    the same scalars as event files

Trackers that are open for the directory (`reporting.trackers`) get what is in
metrics.jsonl.

Every write reaches the operating system before it returns, so a kill loses
nothing. JSON has no non-finite numbers: they are written as the strings
"nan", "inf" and "-inf", which `float()` reads back. Text is ASCII with escapes,
so that a lone surrogate in a response cannot stop a run. Times, which differ
between two equal runs, are only under `seconds/` and `rate/`.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from perl_jax import disk, files, journal
from perl_jax.reporting import terminal, trackers
from perl_jax.reporting.console import Console

# What a run has achieved; a run that has it has finished.
SUMMARY = "summary.json"


class Writer:
  """Writes the scalars, samples and summary of one stage, and shows progress.

    with Writer(workdir, total_steps=600, show=("reward",)) as writer:
      writer.write(step, {"rollout/reward": 0.3})

  Resuming drops the lines with step >= `resume_step` first (and a last line
  that a kill has torn), so that a killed run started again writes what an
  uninterrupted one would have; lines that are missing are named, and doubles
  are dropped. A fresh run starts from empty files.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    total_steps: int,
    name: str = "train",
    resume_step: int = 0,
    show: Sequence[str] = (),
    enabled: bool = True,
    console: Console | None = None,
    plain_seconds: float = 5.0,
    written: Mapping[str, Any] | None = None,
  ):
    """Creates a writer; no file is touched before it is entered.

    Args:
      workdir: The stage's own directory; made if need be.
      total_steps: Steps of the whole stage, for the time that is left.
      name: Title of the progress line.
      resume_step: The first step that this process writes.
      show: Metrics on the progress line, by whole key or last part.
      enabled: False on every process but 0; the writer then does nothing.
      console: Console for the progress; standard output if None.
      plain_seconds: Least seconds between two lines of progress, where the
        console is not a terminal.
      written: `written` at the checkpoint that the run goes on from; None if
        it noted nothing.
    """
    self._workdir, self._enabled = Path(workdir), enabled
    self._resume_step = resume_step
    self._open = False
    self._noted = written or {}
    self._files: dict[str, journal.Journal] = {}
    self._progress = terminal.Progress(
      name, total_steps, resume_step, show, console, plain_seconds
    )

  def __enter__(self) -> Self:
    if not self._enabled:
      return self
    with disk.writing("metrics", self._workdir):
      self._workdir.mkdir(parents=True, exist_ok=True)
      for name in ("metrics.jsonl", "samples.jsonl"):
        self._files[name] = journal.Journal(
          self._workdir / name, self._resume_step, self._noted.get(name)
        )
    # Imported here: it brings PyTorch along, where that is installed.
    from perl_jax.reporting import events

    self._events = events.Events(
      self._workdir / "tensorboard", self._resume_step
    )
    self._trackers = trackers.find(self._workdir)
    if self._trackers is not None:
      self._trackers.begin()
    self._progress.start()
    self._open = True
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if not self._open:
      return
    self._open = False
    self._progress.stop(finished=kind is None)
    # A disk that is full has refused the same bytes already.
    refused = (OSError,) if kind is not None else ()
    with contextlib.suppress(*refused):
      self._events.close()
    for file in self._files.values():
      file.close()

  def write(self, step: int, metrics: Mapping[str, object]) -> None:
    """Writes scalars: one line, one event, and the progress.

    A step may be written more than once (training, then validation).

    Args:
      step: The step that the metrics belong to.
      metrics: Flat names to scalars: Python, NumPy or JAX.
    """
    if not self._active():
      return
    row = {"step": int(step)}
    for key, value in metrics.items():
      row[key] = _scalar(key, value)
    self._append("metrics.jsonl", [row])
    if self._trackers is not None:
      self._trackers.wrote()
    del row["step"]
    self._events.write(int(step), row)
    self._progress.update(int(step), row)

  @property
  def written(self) -> dict[str, Any]:
    """What a checkpoint notes of the rows so far, by file."""
    return {name: file.record() for name, file in self._files.items()}

  def tick(self, step: int) -> None:
    """Advances the progress line, for steps that write no metrics."""
    if self._active():
      self._progress.update(int(step))

  def samples(self, step: int, rows: Iterable[Mapping[str, object]]) -> None:
    """Appends rows to samples.jsonl, each with its step as the first field."""
    if not self._active():
      return
    rows = [{"step": int(step), **row} for row in rows]
    for row in rows:
      if row["step"] != int(step):
        raise ValueError(f"a sample of step {step} says step {row['step']}")
    self._append("samples.jsonl", rows)

  def summary(self, values: Mapping[str, object]) -> None:
    """Replaces summary.json atomically."""
    if self._active():
      files.write_json(self._workdir / SUMMARY, values)

  def _append(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    self._files[name].append(rows)

  def _active(self) -> bool:
    if self._enabled and not self._open:
      raise ValueError("a Writer writes only inside its `with` block")
    return self._enabled


def _scalar(key: str, value: object) -> float | int:
  if key == "step" or np.ndim(value) != 0:
    raise ValueError(
      f"metric {key!r} must be a scalar, and not called 'step'; it has shape "
      f"{np.shape(value)}"
    )
  plain = np.asarray(value).item()
  if type(plain) not in (bool, int, float):
    raise ValueError(f"metric {key!r} is {value!r}, not a number")
  return plain
