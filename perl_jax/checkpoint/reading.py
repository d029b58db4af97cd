"""Reads what a stage has trained, while it runs or after it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from perl_jax import checksums, sharding
from perl_jax import params as params_lib
from perl_jax.checkpoint import apart

DIRECTORY = "checkpoints"


def load_trainable(
  workdir: str | Path,
  which: str,
  like: params_lib.Params,
  mesh: Mesh | None = None,
) -> dict[str, Any]:
  """Reads the trainable tree of a finished or running stage.

  The mesh and the number of processes that wrote it do not matter.

  Args:
    workdir: Directory of the stage that trained it.
    which: "best" or "last".
    like: Tree of arrays or `jax.ShapeDtypeStruct` that the leaves must match.
    mesh: Mesh to read the leaves to, sharded by the path rules, each process
      its part. None reads them to the host, whole on each process.

  Raises:
    FileNotFoundError: The workdir holds no complete checkpoint.
    ValueError: `which` is unknown, a file is not as it was written, or leaves
      are missing, extra or of another shape.
  """
  directory = Path(workdir).absolute() / DIRECTORY
  if which not in ("best", "last"):
    raise ValueError(f"checkpoint={which!r}: choose 'best' or 'last'.")
  if not directory.is_dir():
    raise FileNotFoundError(
      f"{directory} does not exist: {workdir} holds no checkpoint. Point the"
      " init field at the workdir of a stage that has run."
    )
  # The scores of all decide which is best.
  for path in checksums.numbered(directory):
    checksums.require_whole(path)
  with ocp.CheckpointManager(
    directory,
    item_handlers={
      "trainable": ocp.StandardCheckpointHandler(),
      "optimizer": ocp.StandardCheckpointHandler(),
      "meta": ocp.JsonCheckpointHandler(),
    },
    options=ocp.CheckpointManagerOptions(create=False, best_fn=score),
  ) as manager:
    step = _step(manager, directory, which)
    found = manager.item_metadata(step)["trainable"]
    params_lib.require_same_leaves(
      like, dict(found), f"Checkpoint {directory}/{step}"
    )
    if mesh is None:
      abstract = apart.on_host(like)
    else:
      abstract = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        like,
        sharding.shardings(mesh, like),
      )
    restored = manager.restore(
      step,
      args=ocp.args.Composite(trainable=ocp.args.StandardRestore(abstract)),
    )
  return restored["trainable"]


def step_of(workdir: str | Path, which: str) -> int:
  """Step of the "best" or the "last" checkpoint of a stage.

  Raises:
    FileNotFoundError: The workdir holds no complete checkpoint of that kind.
  """
  directory = Path(workdir).absolute() / DIRECTORY
  options = ocp.CheckpointManagerOptions(create=False, best_fn=score)
  with ocp.CheckpointManager(directory, options=options) as manager:
    return _step(manager, directory, which)


def score(metrics: Mapping[str, float]) -> float:
  """What the best checkpoint has the most of."""
  return metrics["score"]


def _step(manager: ocp.CheckpointManager, directory: Path, which: str) -> int:
  step = manager.latest_step() if which == "last" else manager.best_step()
  if step is None:
    raise FileNotFoundError(
      f"{directory} holds no complete checkpoint; let the stage reach its"
      " first evaluation, or run its command again."
    )
  return step
