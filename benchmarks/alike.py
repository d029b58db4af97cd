"""Whether an interrupted run has left what an undisturbed one leaves."""

import signal
from pathlib import Path
from typing import Any

import numpy as np

from perl_jax import files
from tests.tasks import tiny


def made(workdir: Path) -> int:
  """The last step that has a line of its own; 0 for none."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return 0
  rows = files.read_jsonl(path, torn_end=True)
  return max((r["step"] for r in rows if "train/loss" in r), default=0)


def stages(workdir: Path) -> list[Path]:
  """A workdir and those of a pipeline's stages in it."""
  return [workdir, *(path.parent for path in workdir.glob("*/config.json"))]


def lost_steps(workdir: Path) -> str:
  """Steps that were finished and are not in a checkpoint; "" if none is."""
  for place in stages(workdir):
    saved = max(tiny.kept(place), default=0)
    if made(place) > saved and place.name != "evaluate":
      return f"{place.name} made {made(place)} steps and saved {saved}"
  return ""


def untimed(workdir: Path) -> dict[str, Any]:
  """What a run has achieved, without what it took."""
  took = ("seconds", "memory", "peak_bytes", "rate")
  return {
    name: value
    for name, value in tiny.summary(workdir).items()
    if not any(part.startswith(took) for part in name.split("."))
  }


def different(whole: Path, other: Path, number: int) -> str:
  """What of a run is not as in the undisturbed one; "" if nothing."""
  for mine in stages(whole):
    theirs = other / mine.relative_to(whole)
    for name in ("metrics.jsonl", "samples.jsonl", "scores.jsonl"):
      if (mine / name).exists() != (theirs / name).exists():
        return f"{theirs / name} is there in one of the two only"
      if (mine / name).exists() and tiny.lines(mine, name) != tiny.lines(
        theirs, name
      ):
        return f"{theirs / name} differs"
    if untimed(mine) != untimed(theirs):
      return f"{theirs / 'summary.json'} differs"
    # What a signal saved in between may still be kept, and of a run that was
    # killed after its last save what that was about to delete.
    kept, found = tiny.kept(mine), tiny.kept(theirs)
    as_many = set(kept) <= set(found) and len(found) <= len(kept) + 1
    if number == signal.SIGKILL and not as_many:
      return f"{theirs} keeps {found}, not {kept}"
    arrays, found = tiny.checkpoints(mine), tiny.checkpoints(theirs)
    if missing := arrays.keys() - found.keys():
      return f"{theirs} lacks {sorted(missing)[0]}"
    for name, array in arrays.items():
      if not np.array_equal(array, found[name], equal_nan=True):
        return f"{theirs}/checkpoints/{name} differs"
    if (theirs / "lock.json").exists():
      return f"{theirs / 'lock.json'} is left"
  # A short run that nobody has disturbed ends without one.
  if (whole / "report.html").exists() > (other / "report.html").exists():
    return "report.html is missing"
  return ""
