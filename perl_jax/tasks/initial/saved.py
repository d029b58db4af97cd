"""What the checkpoints of a workdir say of themselves, without their arrays."""

from pathlib import Path
from typing import Any, NamedTuple

from perl_jax import checkpoint, checksums, json_text
from perl_jax.tasks.settings import paths

_META = "meta/metadata"
# In the metadata of a checkpoint that was evaluated, and not by what the best
# one is chosen by.
UNSCORED = "unscored"


class Saved(NamedTuple):
  """A complete checkpoint.

  Attributes:
    step: Number of updates before it.
    meta: What the loop needs beside the arrays; see `training.loop`.
    judged: Whether it was evaluated: `meta["evaluated"]` is then of it.
  """

  step: int
  meta: dict[str, Any]
  judged: bool


def members(workdir: str | Path) -> list[Path]:
  """The workdirs of the members of a run, in their order; none of others."""
  found = (Path(workdir) / paths.MEMBERS).glob("*")
  return sorted(
    (path for path in found if path.name.isdigit()),
    key=lambda path: int(path.name),
  )


def checkpoints(workdir: str | Path) -> list[Saved]:
  """The checkpoints of a workdir, the oldest first.

  One whose metadata are damaged is left out: whoever reads its arrays says so.
  """
  directory = Path(workdir) / checkpoint.DIRECTORY
  if not directory.is_dir():
    return []
  found = []
  for path in checksums.numbered(directory):
    if checksums.fault(path, only=_META):
      continue
    meta = json_text.object_or_none(path / _META)
    if meta is not None:
      judged = (path / "metrics").is_dir() or UNSCORED in meta
      found.append(Saved(int(path.name), meta, judged))
  return found
