"""The anchor's log-probs of DPO's training pairs, once for all epochs.

The anchor does not change, and a pair comes again in every epoch. Where a run
is longer than an epoch, all its pairs are scored before the first step, and
kept in a file of the workdir for a run that goes on. A shorter one scores the
pairs of each batch as it comes: that is not more.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from perl_jax import files, hosts, json_text, sharding
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching

FILE = "anchor_logprobs.json"
_SUM = "sha256"

# Scores batches: log-probs in nats by the index of a pair, chosen and rejected.
Score = Callable[[Iterator[Any]], Mapping[int, np.ndarray]]


def table(
  config: shared.Config,
  workdir: Path,
  stands_on: Mapping[str, str],
  data: batching.Inputs,
  score: Score,
) -> np.ndarray | None:
  """Log-probs in nats of the training pairs by index, `[n, 2]` float32.

  All processes have to call it. Rows that are no pair, as they were left out,
  are 0.

  Args:
    config: Config of the stage.
    workdir: Its workdir.
    stands_on: SHA-256 of what the run is made from; a file that was made from
      something else is not read.
    data: The pairs.
    score: Scores them with the anchor.

  Returns:
    The table, or None if the run sees no pair twice.
  """
  rows = len(data.train_rows)
  if config.steps * config.batch_size <= rows:
    return None
  path, found = workdir / FILE, np.zeros((rows, 2), np.float32)
  known = _read(path, stands_on, found) if hosts.is_primary() else False
  if hosts.from_primary(np.array(known)):
    return hosts.from_primary(found)
  scored = score(data.once("scoring training pairs with the anchor"))
  found[list(scored)] = list(scored.values())
  if hosts.is_primary():
    content = {"stands_on": dict(stands_on), "logprobs": found.tolist()}
    files.write_json(path, content | {_SUM: _sum(found)})
  return found


def looked_up(
  mesh: jax.sharding.Mesh, found: np.ndarray
) -> Callable[[jax.Array], jax.Array]:
  """`of(index)`: what a table says of pairs `[N, P]`, `[N, P, 2]` float32.

  Where the index is negative, there is no pair, and it is 0.

  Args:
    mesh: Mesh that the table is placed on, whole on every device.
    found: From `table`.
  """
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  placed = jax.make_array_from_callback(
    found.shape, whole, lambda place: found[place]
  )

  @jax.jit
  def of(table, index):
    kept = jnp.where((index >= 0)[..., None], table[index], 0.0)
    return sharding.constrain(kept, sharding.BATCH_AXES)

  return lambda index: of(placed, index)


def _read(path: Path, stands_on: Mapping[str, str], into: np.ndarray) -> bool:
  """Fills a table from its file; whether that is whole and of this run."""
  if not path.is_file():
    return False
  noted = json_text.object_or_none(path) or {}
  try:
    found = np.array(noted.get("logprobs"), np.float32)
  except (TypeError, ValueError):
    found = np.zeros(0, np.float32)
  same = found.shape == into.shape and _sum(found) == noted.get(_SUM)
  if not same or noted.get("stands_on") != dict(stands_on):
    logging.warning(
      "%s is damaged, or of other pairs or another anchor: they are scored"
      " anew.",
      path,
    )
    return False
  into[:] = found
  return True


def _sum(found: np.ndarray) -> str:
  return hashlib.sha256(found.tobytes()).hexdigest()
