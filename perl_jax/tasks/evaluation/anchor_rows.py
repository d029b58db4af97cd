"""What a run that trains has computed of its anchor: no start does it again.

The anchor does not change. `anchor.jsonl` in the workdir has a line for each
batch of rows that it has answered or scored, which is on the disk before the
next batch begins, and before them one that says what they are computed from.
The file stays: a run that goes on reads it, so that a run which is stopped
before its first step is nearer to that step at its next start.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import disk, files, hosts, json_text
from perl_jax.hosts import signals
from perl_jax.tasks.evaluation import so_far
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import changes, standing

NAME = "anchor.jsonl"
_MADE_FROM = "made_from"
# What the rows of a file are of: responses to held-out prompts, and pairs.
RESPONSES, TRAINING, HELD_OUT = "responses", "training pairs", "held-out pairs"


@contextlib.contextmanager
def kept(
  config: shared.Config, workdir: Path, stands_on: standing.Standing
) -> Iterator[Callable[[str], so_far.Part]]:
  """Yields `part(name)`: rows that are there, and what takes more.

  All processes have to enter it: process 0 reads and writes. Lines that were
  computed from something else are not read, with a warning; neither are damaged
  ones, and those after them.

  Args:
    config: Config of the stage.
    workdir: Its workdir, which this run has locked and claimed.
    stands_on: What the run is made from. Who judges beside it does not count.

  Raises:
    signals.Stopped: The run was told to stop; says what is kept.
  """
  rows = _Rows(workdir / NAME, _made_from(config, stands_on))
  try:
    yield rows.part
  except signals.Stopped as stopped:
    if not rows.more:
      raise
    said = f", what the anchor has computed so far is kept in {rows.path}"
    raise signals.Stopped(stopped.by, said, together=stopped.together) from None
  finally:
    rows.forget()


def _made_from(
  config: shared.Config, stands_on: standing.Standing
) -> dict[str, str]:
  """SHA-256 of what the rows depend on, by name."""
  fixed = changes.without_changeable(shared.as_written(config))
  text = json.dumps(fixed, sort_keys=True)
  found = {
    name: digest
    for name, digest in stands_on.digests.items()
    if not name.endswith(standing.OF_JUDGE)
  }
  return found | {"config": hashlib.sha256(text.encode()).hexdigest()}


class _Rows:
  """The file of a workdir.

  Attributes:
    path: Where it lies.
    more: Whether this process has computed rows that were not there.
  """

  def __init__(self, path: Path, made_from: Mapping[str, str]):
    self.path, self.more = path, False
    first = so_far.with_digest({_MADE_FROM: dict(made_from)})
    self._lines = [first, *_read(path, made_from)]
    self._parts: dict[str, dict[int, Any]] = {}
    for line in self._lines[1:]:
      rows = {int(i): value for i, value in line["rows"].items()}
      self._parts.setdefault(line["of"], {}).update(rows)

  def forget(self) -> None:
    """Gives the memory of all rows back; the file stays."""
    self._parts.clear()
    self._lines.clear()

  def part(self, name: str) -> so_far.Part:
    """The rows of a computation that has this name in the file."""
    return so_far.Part(
      self._parts.get(name, {}), functools.partial(self._keep, name)
    )

  def _keep(self, name: str, rows: Mapping[int, Any]) -> None:
    if hosts.is_primary():
      if not self.more:
        files.write_jsonl(self.path, self._lines)
      with disk.writing(NAME, self.path.parent):
        file = self.path.open("ab", buffering=0)
      with file:
        line = so_far.with_digest({"of": name, "rows": rows})
        files.append(file, [line], durable=True)
    self.more, self._lines = True, []


def _read(path: Path, made_from: Mapping[str, str]) -> list[dict[str, Any]]:
  """The lines of a file up to the first damaged one, without the first."""
  mine = hosts.is_primary() and path.is_file()
  content = hosts.content_from_primary(path.read_bytes() if mine else b"")
  lines, texts = [], content.splitlines(keepends=True)
  for text in texts:
    line = _whole(text)
    if line is None:
      break
    lines.append(line)
  # A last line that is torn is that of a run which was killed.
  if len(lines) < len(texts) and texts[len(lines)].endswith(b"\n"):
    logging.warning(
      "%s:%d: the line is not as it was written. What it and the lines after it"
      " had is computed again.",
      path,
      len(lines) + 1,
    )
  before = lines[0].get(_MADE_FROM, {}) if lines else made_from
  changed = sorted(
    name
    for name in {*before, *made_from}
    if before.get(name) != made_from.get(name)
  )
  if changed:
    logging.warning(
      "%s was computed from something else than what is there now (%s): its"
      " rows are computed anew.",
      path,
      ", ".join(changed),
    )
  return [] if changed else lines[1:]


def _whole(text: bytes) -> dict[str, Any] | None:
  try:
    row = json_text.parse(text)
  except json_text.Fault:
    return None
  return row if isinstance(row, dict) and so_far.is_whole(row) else None
