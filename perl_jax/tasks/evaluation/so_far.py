"""What an evaluation has computed so far: a killed one does not do it again.

`so_far.jsonl` in the workdir has a line for each batch of rows, which is there
as soon as the batch is computed, and before them one that says what they are
computed from. What is drawn at random for a row depends on the row alone, and
so it does not matter how many starts a result has taken. The file is removed
once there is a result.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import buckets, disk, files, hosts
from perl_jax.hosts import signals
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.training import standing

NAME = "so_far.jsonl"


class Part:
  """The rows of one computation, such as the responses of one model."""

  def __init__(
    self,
    kept: Mapping[int, Any],
    keep: Callable[[Mapping[int, Any]], None],
  ):
    """Binds what is there and what takes more.

    Args:
      kept: Values of rows, by their index, as they are read from JSON.
      keep: Called with the values of each batch that is computed.
    """
    self._kept, self._keep = kept, keep

  def batch(
    self,
    indices: Iterable[int],
    compute: Callable[[], dict[int, Any]],
    read: Callable[[int, Any], Any] = lambda index, value: value,
  ) -> dict[int, Any]:
    """The rows of a batch by their index; computed unless all are there.

    Args:
      indices: The rows, those of all processes.
      compute: Computes their values, which JSON can hold, on all processes.
      read: Makes a row of its index and its value, whether that is new or has
        been in a file; there `files.numbers` helps.
    """
    indices = list(map(int, indices))
    if all(i in self._kept for i in indices):
      values = {i: self._kept[i] for i in indices}
    else:
      values = compute()
      self._keep(values)
    return {i: read(i, value) for i, value in values.items()}


# Of what is not kept.
NOTHING = Part({}, lambda rows: None)


class SoFar:
  """What a workdir has of an evaluation that is under way.

  In its block more is added; if that ends well, the file goes.
  """

  def __init__(
    self, workdir: Path, now: standing.Standing, claim: Callable[[], None]
  ):
    """Reads what is there; nothing is changed.

    Args:
      workdir: Workdir of the evaluation, which this run has locked.
      now: What is computed from.
      claim: Claims the workdir; called on all processes before anything is
        written.

    Raises:
      ValueError: What is there was computed from something else.
    """
    self._path, self._now, self._claim = workdir / NAME, now, claim
    self._file, self._begun = None, False
    self._lines = _read(self._path, now) if self._path.exists() else []
    self._parts: dict[str, dict[int, Any]] = {}
    for line in self._lines[1:]:
      rows = {int(i): value for i, value in line["rows"].items()}
      self._parts.setdefault(line["of"], {}).update(rows)

  def part(self, name: str) -> Part:
    """The rows of a computation that has this name in the file."""
    return Part(self._parts.get(name, {}), lambda rows: self._keep(name, rows))

  def begin(self) -> None:
    """Claims the workdir, if that has not been done, and what is written stays.

    All processes have to call it.
    """
    if self._begun:
      return
    self._claim()
    self._begun = True
    if hosts.is_primary():
      first = with_digest({"stands_on": self._now.digests})
      files.write_jsonl(self._path, self._lines or [first])
      with disk.writing(NAME, self._path.parent):
        self._file = self._path.open("ab", buffering=0)
    self._lines = []

  def __enter__(self) -> "SoFar":
    if self._parts:
      found = [f"{len(rows)} of {name}" for name, rows in self._parts.items()]
      logging.info(
        "%s has rows from before, which are not computed again: %s.",
        self._path,
        ", ".join(found),
      )
      self.begin()
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._file is not None:
      self._file.close()
    if not self._begun:
      return
    if isinstance(error, signals.Stopped):
      said = f", what has been computed so far is kept in {self._path}"
      raise signals.Stopped(error.by, said, together=error.together) from None
    if error is None and hosts.is_primary():
      sealed.write(self._path.parent)
      self._path.unlink()

  def _keep(self, name: str, rows: Mapping[int, Any]) -> None:
    self.begin()
    if self._file is not None:
      files.append(
        self._file, [with_digest({"of": name, "rows": rows})], durable=True
      )


def clear(workdir: Path) -> None:
  """Removes what a run left that was killed after its result was written."""
  if hosts.is_primary() or buckets.is_apart(workdir):
    (workdir / NAME).unlink(missing_ok=True)


def _read(path: Path, now: standing.Standing) -> list[dict[str, Any]]:
  """The lines of a file, without one that is torn or damaged."""
  way_out = "Remove the line: its rows are computed again."
  lines = list(files.jsonl_lines(path, torn_end=True, way_out=way_out))
  whole = [line.row for line in lines if is_whole(line.row)]
  if len(whole) < len(lines):
    logging.warning(
      "%s has lines that are not as they were written, %d of %d: their rows are"
      " computed again.",
      path,
      len(lines) - len(whole),
      len(lines),
    )
  if whole and "stands_on" not in whole[0]:
    raise ValueError(
      f"{path} does not say any more what its rows were computed from. Restore"
      " its first line, or remove the file to compute all rows again."
    )
  if whole:
    standing.require_same_so_far(path, whole[0]["stands_on"], now)
  return whole


def with_digest(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row with a SHA-256 of itself, by which `is_whole` knows it."""
  digest = hashlib.sha256(files.json_line(row).encode()).hexdigest()
  return {**row, "sha256": digest}


def is_whole(row: Mapping[str, Any]) -> bool:
  """Whether a row that was read is as `with_digest` made it."""
  return row == with_digest({k: v for k, v in row.items() if k != "sha256"})
