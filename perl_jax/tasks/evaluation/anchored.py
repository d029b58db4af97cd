"""Log-probs of DPO's pairs by policy and anchor; the anchor's, once for all.

The anchor does not change, and a pair comes again in every epoch. Where a run
is longer than an epoch, all its pairs are scored before the first step. A
shorter one scores the pairs of each batch as it comes: that is not more.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import files, hosts, roles, sharding, steps
from perl_jax.tasks.evaluation import anchor_rows, so_far
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, inputs, together

# Scores batches: log-probs in nats by the index of a pair, chosen and rejected.
Score = Callable[[Iterator[Any]], Mapping[int, np.ndarray]]
# `logprobs(trainable, frozen, pairs)` of a batch on the mesh.
LogProbs = Callable[[Any, Any, Any], jax.Array]
# `part(name)`: rows of the anchor that are there, and what takes more.
Part = Callable[[str], so_far.Part]


class Scoring(NamedTuple):
  """What the pairs of a run are scored from with its anchor.

  Attributes:
    logprobs: Scores pairs.
    anchor: The anchor, on the mesh.
    data: The pairs.
    mesh: Mesh of the run.
    member: The member of a run, or a run of its own.
    part: From `anchor_rows.kept`.
  """

  logprobs: LogProbs
  anchor: roles.Role
  data: batching.Inputs
  mesh: jax.sharding.Mesh
  member: together.Member
  part: Part


def make_with_anchor(
  config: shared.Config, scoring: Scoring
) -> Callable[[Any], steps.AnchoredPairs]:
  """Returns `with_anchor(pairs)` of a training batch on the mesh.

  Members have one anchor, whatever their seeds: they start from one model, to
  which an adapter that is new adds 0.

  Args:
    config: Config of the stage.
    scoring: The pairs, and what scores them.
  """
  logprobs, anchor, data, mesh, member, part = scoring

  def score(batches):
    rows = data.fingerprints[f"{inputs.TRAINING} (preferences)"]
    return member.once(
      ("pairs", rows, anchor.backbone),
      lambda: by_pair(
        logprobs, anchor, batches, mesh, part(anchor_rows.TRAINING)
      ),
    )

  known = table(config, data, score)
  if known is not None:
    of = looked_up(mesh, known)
    return lambda batch: steps.AnchoredPairs(batch, of(batch.index))
  trees = anchor.trainable, anchor.frozen

  def scored(batch):
    # Members of one seed have the same pairs at every step.
    return member.latest(
      ("pairs of a batch", config.seed, anchor.backbone),
      batch.index,
      lambda: logprobs(*trees, batch),
    )

  return lambda batch: steps.AnchoredPairs(batch, scored(batch))


def score_anchor(scoring: Scoring) -> np.ndarray:
  """`score_pairs` of the anchor, once for all members with the same pairs."""
  logprobs, anchor, data, mesh, member, part = scoring
  rows = data.fingerprints[f"{inputs.VALIDATION} (preferences)"]
  return member.once(
    ("held-out pairs", rows, anchor.backbone),
    lambda: score_pairs(
      logprobs, anchor, data, mesh, part(anchor_rows.HELD_OUT)
    ),
  )


def score_pairs(
  logprobs: LogProbs,
  role: roles.Role,
  data: batching.Inputs,
  mesh: jax.sharding.Mesh,
  part: so_far.Part = so_far.NOTHING,
) -> np.ndarray:
  """Log-probs in nats of the held-out pairs, `[2, n]`: chosen, rejected.

  Args:
    logprobs: Scores them.
    role: The policy or the anchor, on the mesh.
    data: The pairs.
    mesh: Mesh of the run.
    part: Scores that are there, and what takes more.
  """
  batches = data.held_out("scoring held-out pairs")
  found = by_pair(logprobs, role, batches, mesh, part)
  return np.stack([found[i] for i in sorted(found)], axis=1)


def by_pair(
  logprobs: LogProbs,
  role: roles.Role,
  batches: Iterator[Any],
  mesh: jax.sharding.Mesh,
  part: so_far.Part = so_far.NOTHING,
) -> dict[int, np.ndarray]:
  """Log-probs in nats by a pair's index, `[2]` float32: chosen, rejected."""

  def score(device, places):
    scores = hosts.to_host(logprobs(role.trainable, role.frozen, device))
    return {index: scores[at] for index, at in places}

  def read(index, value):
    del index
    return np.asarray(files.numbers(value), np.float32)

  found = {}
  for batch in batches:
    device = sharding.place_batch(mesh, batch)
    places = list(hosts.to_host(device).places())
    found |= part.batch(
      (index for index, _ in places),
      lambda device=device, places=places: score(device, places),
      read,
    )
  return found


def table(
  config: shared.Config, data: batching.Inputs, score: Score
) -> np.ndarray | None:
  """Log-probs in nats of the training pairs by index, `[n, 2]` float32.

  All processes have to call it. Rows that are no pair, as they were left out,
  are 0.

  Args:
    config: Config of the stage.
    data: The pairs.
    score: Scores them with the anchor.

  Returns:
    The table, or None if the run sees no pair twice.
  """
  rows = len(data.train_rows)
  if config.steps * config.batch_size <= rows:
    return None
  found = np.zeros((rows, 2), np.float32)
  scored = score(data.once("scoring training pairs with the anchor"))
  found[list(scored)] = list(scored.values())
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
