"""A JSON-lines file that a run appends to, and checks when it goes on.

Every row has a step. A checkpoint notes which rows there were until then, so
that a run which goes on from it can tell what has been cut off or changed since
(by people, a full disk, a copy that was interrupted), and what stands there
twice.
"""

import collections
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from perl_jax import files

_WAY_OUT = (
  "Restore the line, or remove it: the run goes on and names what is missing."
)


class _Line(NamedTuple):
  step: int
  text: bytes


class Journal:
  """An open file of rows; lines that a run will write again have been dropped.

  Rows before `resume_step` that stand twice are dropped too, and a warning
  names the steps whose rows are missing.
  """

  def __init__(
    self,
    path: Path,
    resume_step: int = 0,
    noted: Mapping[str, Any] | None = None,
  ):
    """Opens the file, which is rewritten as a whole if lines are dropped.

    Args:
      path: The file; made if need be.
      resume_step: The first step that will be written; 0 starts from an empty
        file.
      noted: `record()` when the checkpoint was made that the run goes on from;
        None if it noted nothing.

    Raises:
      ValueError: A line is no JSON object with a step; names the line.
    """
    lines = _read(path) if path.exists() and resume_step > 0 else []
    lines = [line for line in lines if line.step < resume_step]
    if noted is not None and resume_step > 0:
      lines = _mended(path, lines, noted, resume_step)
    text = b"".join(line.text for line in lines)
    if path.exists() and path.read_bytes() != text:
      files.write_text(path, text.decode())
    self._digest = hashlib.sha256(text)
    self._counts = collections.Counter(line.step for line in lines)
    self._file = path.open("ab", buffering=0)

  def append(self, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes rows, which reach the operating system before it returns.

    Raises:
      disk.CannotWrite: The file system refuses; no row was written.
    """
    rows = list(rows)
    self._digest.update(files.append(self._file, rows))
    self._counts.update(row["step"] for row in rows)

  def record(self) -> dict[str, Any]:
    """What a checkpoint notes: the steps of all rows, and their SHA-256."""
    steps = sorted(self._counts.items())
    return {"sha256": self._digest.hexdigest(), "steps": _packed(steps)}

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _read(path: Path) -> list[_Line]:
  """The lines of a file with their steps; a torn last one is left out."""
  found = []
  for line in files.jsonl_lines(path, torn_end=True, way_out=_WAY_OUT):
    step = line.row.get("step")
    if type(step) is not int:
      raise ValueError(
        f"{path}:{line.number}: a row has no step: {line.text[:60]!r}."
        f" {_WAY_OUT}"
      )
    found.append(_Line(step, line.text + b"\n"))
  return found


def _mended(
  path: Path, lines: Sequence[_Line], noted: Mapping[str, Any], end: int
) -> list[_Line]:
  """The lines without doubles; a warning says what else is not as noted.

  Steps from `end` on are written anew, also where they were noted.
  """
  if _digest(lines) == noted["sha256"]:
    return list(lines)
  every = dict(_unpacked(noted["steps"]))
  expected = {step: count for step, count in every.items() if step < end}
  kept, seen, dropped = [], collections.defaultdict(list), set()
  counts = collections.Counter(line.step for line in lines)
  for line in lines:
    mine = seen[line.step]
    more = counts[line.step] > expected.get(line.step, 0)
    if more and (line.text in mine or len(mine) == expected.get(line.step, 0)):
      counts[line.step] -= 1
      dropped.add(line.step)
      continue
    mine.append(line.text)
    kept.append(line)
  missing = [s for s, count in expected.items() if counts[s] < count]
  if dropped:
    logging.warning(
      "%s had rows twice, or more than the run has written, at %s: they have"
      " been dropped.",
      path,
      _named(dropped),
    )
  if missing:
    logging.warning(
      "%s lacks rows of %s, which have been written before the checkpoint that"
      " the run goes on from: they have been removed since, and stay missing.",
      path,
      _named(missing),
    )
  elif expected == every and _digest(kept) != noted["sha256"]:
    logging.warning(
      "%s is not as it was written: a row up to %s has been changed, or the"
      " order of the rows has.",
      path,
      _named([max(expected, default=0)]),
    )
  return kept


def _digest(lines: Iterable[_Line]) -> str:
  return hashlib.sha256(b"".join(line.text for line in lines)).hexdigest()


def _named(steps: Iterable[int]) -> str:
  """Steps for people to read: "steps 1 to 4 and 7"."""
  parts = []
  for first, last in _runs(sorted(steps)):
    parts.append(str(first) if first == last else f"{first} to {last}")
  if len(parts) > 8:
    parts = [*parts[:7], f"{len(parts) - 7} more ranges"]
  text = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
  return f"step{'s' if len(parts) > 1 or 'to' in text else ''} {text}"


def _runs(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
  """(first, last) of steps that follow each other."""
  numbered = enumerate(steps)
  for _, run in itertools.groupby(numbered, lambda pair: pair[1] - pair[0]):
    found = [step for _, step in run]
    yield found[0], found[-1]


def _packed(steps: Sequence[tuple[int, int]]) -> list[list[int]]:
  """[first step, last step, stride, rows of each] of (step, rows), in order."""
  found: list[list[int]] = []
  for step, count in steps:
    if found and found[-1][3] == count:
      first, last, stride, _ = found[-1]
      if first == last or step - last == stride:
        found[-1] = [first, step, step - last, count]
        continue
    found.append([step, step, 1, count])
  return found


def _unpacked(packed: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
  for first, last, stride, count in packed:
    for step in range(first, last + 1, stride):
      yield step, count
