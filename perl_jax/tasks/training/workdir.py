"""Claims a workdir for a config."""

import contextlib
import functools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from perl_jax import files, hosts
from perl_jax.tasks.settings import shared

CONFIG_FILE = "config.json"

# Fields, of a stage or of one in a pipeline, that say where a run computes and
# not what: it may go on elsewhere.
_WHERE = re.compile(r"config(\.\w+)*\.(mesh\.\w+|rollouts\.layout|fit): ")


@contextlib.contextmanager
def preparing(config: shared.Config, workdir: str | Path) -> Iterator[Path]:
  """Claims a workdir for a config once everything in the block has worked.

  The block reads data and earlier stages, and may write into the workdir. If
  it fails, what was not there before is gone again, the workdir too (a stale
  tokenizer would be taken by the next command); if it succeeds, config.json is
  written. All of that is done by process 0 of the run, while the others wait.

  Raises:
    ValueError: The workdir belongs to a run with another config; the fields
      that differ are listed. Nothing is changed. Mesh and layouts may differ.
      Or it is not one that all hosts share.
  """
  workdir = Path(workdir).absolute()
  mine = json.loads(config.to_json())
  _refuse_other(workdir, mine)
  before = set(workdir.iterdir()) if workdir.exists() else None
  hosts.barrier("workdir looked at")
  undo = functools.partial(_remove_new, workdir, before)
  try:
    with hosts.undone_by_others(undo):
      hosts.on_primary(
        "workdir", lambda: workdir.mkdir(parents=True, exist_ok=True)
      )
      if not hosts.sees(workdir):
        raise ValueError(
          f"--workdir={workdir} was made by process 0 and is not there for"
          f" process {jax.process_index()}: it must lie on a file system that"
          " all hosts share."
        )
      yield workdir
      hosts.barrier("prepared")  # all of them
  except BaseException:
    if hosts.is_primary():
      undo()
    raise

  def claim():
    files.write_json(workdir / CONFIG_FILE, mine)
    # The report shows it; a resumed run may have been started by another.
    command = shlex.join(["python", "-m", "perl_jax.main", *sys.argv[1:]])
    files.write_text(workdir / "command.txt", command + "\n")

  hosts.on_primary("claimed", claim)


def _remove_new(workdir: Path, before: set[Path] | None) -> None:
  if before is None:
    shutil.rmtree(workdir, ignore_errors=True)
    return
  for path in set(workdir.iterdir()) - before:
    if path.is_dir():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink()


def _refuse_other(workdir: Path, mine: Mapping[str, Any]) -> None:
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file, not a directory.")
  path = workdir / CONFIG_FILE
  if not path.exists():
    return
  lines = differences(json.loads(path.read_text()), mine)
  moved = [line for line in lines if _WHERE.match(line)]
  lines = [line for line in lines if line not in moved]
  if moved and not lines:
    logging.info(
      "%s goes on in another layout: %s. Sums are rounded otherwise than if it"
      " had stayed.",
      workdir,
      ", ".join(moved),
    )
  if lines:
    listed = "\n  ".join(lines)
    raise ValueError(
      f"{workdir} belongs to a run with another config:\n  {listed}\n"
      "Give another --workdir, or remove this one to start afresh."
    )


def differences(theirs: Any, mine: Any, path: str = "config") -> list[str]:
  """Lines "config.field: theirs -> mine" for each field that differs."""
  if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
    lines = []
    for key in sorted(set(theirs) | set(mine)):
      missing = "(absent)"
      lines += differences(
        theirs.get(key, missing), mine.get(key, missing), f"{path}.{key}"
      )
    return lines
  return [] if theirs == mine else [f"{path}: {theirs!r} -> {mine!r}"]
