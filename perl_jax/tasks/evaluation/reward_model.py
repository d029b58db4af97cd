"""Scores a reward model on held-out rows."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from perl_jax import classification, files, hosts, roles, sharding
from perl_jax import params as params_lib
from perl_jax.objectives import ensembles
from perl_jax.tasks.evaluation import so_far as so_far_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import reward_functions
from perl_jax.tasks.training import batching
from perl_jax.tasks.training.compiled import Compiled

SCORES = "scores.jsonl"
# A column with more values than this names no parts of a benchmark.
MOST_SUBSETS = 100
_SIDES = ("chosen", "rejected", "score")


def make_scorer(
  backbone: roles.Backbone,
  max_response: int,
  members: int = 1,
  closing: int = 0,
):
  """Returns `score(trainable, frozen, batch)` of `PackedResponses`.

  It gives the scores of a batch, `[N, P, K]` float32, or `[members, N, P, K]`
  of an ensemble; see `roles.packed_scores`.

  Args:
    backbone: Model and adapter shape.
    max_response: At least the number of tokens of any response.
    members: Number of models in the ensemble.
    closing: See `roles.packed_scores`.
  """

  def score(trainable, frozen, batch):
    return roles.packed_scores(
      backbone,
      params_lib.combine(trainable, frozen),
      batch,
      max_response=max_response,
      closing=closing,
    )

  if members > 1:
    return jax.vmap(score, in_axes=(0, None, None))
  return score


def packing_of(reward: Start) -> batching.Packing:
  """How rows are packed that a reward model scores."""
  head = (reward.role.head or {}).get(params_lib.HEAD, {})
  return batching.Packing.of(reward.config, targets="likelihood" in head)


def is_closed(reward: Start) -> bool:
  """Whether a reward model reads conversations to the end of the template."""
  return reward.score_at == "template"


def compiled_scorer(
  reward: Start, role: roles.Role, longest: int, name: str = "reward scores"
) -> Compiled:
  """`make_scorer` for a reward model that has been read.

  Args:
    reward: The reward model.
    role: Its role on the mesh.
    longest: At least the number of tokens of any response.
    name: What the log calls it.
  """
  closing = len(reward.load_tokenizer().closing) if is_closed(reward) else 0
  return Compiled(
    make_scorer(role.backbone, longest, role.members, closing), name=name
  )


def score_rows(
  score: Compiled,
  role: roles.Role,
  data: batching.Inputs,
  mesh: jax.sharding.Mesh,
  *,
  combine: str = "mean",
  std_weight: float = 1.0,
  so_far: so_far_lib.Part = so_far_lib.NOTHING,
) -> list[dict[str, Any]]:
  """Scores of all validation rows in their order, the rows of scores.jsonl.

  Args:
    score: From `make_scorer`.
    role: The reward model, on the mesh.
    data: Pairs or labelled rows.
    mesh: Mesh that batches are placed on.
    combine: How the members' scores become one; the scores of each member are
      kept beside it as a list, NAME_members.
    std_weight: Weight of the deviation in "mean_minus_std".
    so_far: See `score_batches`.
  """
  rows = []
  found = score_batches(score, role, data, mesh, so_far)
  for index, columns in sorted(found.items()):
    record = data.rows[index]
    require_finite(columns, record.id)
    row = {"id": record.id, "group": record.group}
    if record.subset:
      row["subset"] = record.subset
    rows.append(row | columns)
  return combine_rows(rows, combine, std_weight)


def require_finite(scores: Mapping[str, Any], row: str) -> None:
  """Checks that the scores of a row are numbers that can be compared.

  Args:
    scores: Its entry of `score_batches`.
    row: Its id.

  Raises:
    ValueError: One is not; names the row.
  """
  for name in _SIDES:
    if name in scores and not np.isfinite(scores[name]).all():
      raise ValueError(
        f"{row}: the reward model's {name} is {scores[name]}. Its weights are"
        " not finite, or grow too large in its model.dtype: take another of its"
        " checkpoints, or train it anew."
      )


def score_batches(
  score: Compiled,
  role: roles.Role,
  data: batching.Inputs,
  mesh: jax.sharding.Mesh,
  so_far: so_far_lib.Part = so_far_lib.NOTHING,
) -> dict[int, dict[str, Any]]:
  """Scores of the rows of all batches, by a row's index.

  Of a pair they are `chosen` and `rejected`, of another row `score`, beside its
  `label`; each a number, or a list with one of each member of an ensemble.

  Args:
    score: From `make_scorer`.
    role: The reward model, on the mesh.
    data: Pairs, labelled rows, or responses to score.
    mesh: Mesh that batches are placed on.
    so_far: What an earlier start of this process has scored, and what takes
      more.
  """
  found = {}
  for batch in data.held_out("scoring rows"):
    device = sharding.place_batch(mesh, batch)
    batch = hosts.to_host(device)
    found |= so_far.batch(
      (index for index, _ in batch.places()),
      lambda batch=batch, device=device: _score_batch(
        score, role, batch, device
      ),
      lambda _, columns: files.numbers(columns),
    )
  return found


def _score_batch(score, role, batch, device) -> dict[int, dict[str, Any]]:
  """Scores by a row's index of a batch, on the host and on the mesh."""
  scores = hosts.to_host(score(role.trainable, role.frozen, device))
  found = {}
  for index, at in batch.places():
    if batch.last.shape[-1] == 1:
      own = {"score": scores[..., *at, 0], "label": batch.labels[at]}
    else:
      own = {side: scores[..., *at, k] for k, side in enumerate(_SIDES[:2])}
    found[index] = {k: x.tolist() for k, x in own.items()}
  return found


def combine_rows(
  rows: list[dict[str, Any]], how: str, std_weight: float
) -> list[dict[str, Any]]:
  """Rows with one score instead of the members', which move to NAME_members.

  A member is centred at its mean over all responses of the rows, except where
  labels define what a score of 0 means; see `ensembles.combine_scores`.
  """
  names = [name for name in _SIDES if isinstance(rows[0].get(name), list)]
  if not names:
    return rows
  scores = np.array([[row[name] for row in rows] for name in names], np.float32)
  scores = np.moveaxis(scores, -1, 0)  # [members, sides, n]
  centres = None if "label" in rows[0] else scores.mean(axis=(1, 2))
  combined = ensembles.combine_scores(
    jnp.asarray(scores.reshape(len(scores), -1)),
    how=how,
    std_weight=std_weight,
    centres=centres,
  )
  combined = np.asarray(combined).reshape(len(names), -1)
  return [
    row
    | {f"{name}_members": row[name] for name in names}
    | {name: float(side[i]) for name, side in zip(names, combined, strict=True)}
    for i, row in enumerate(rows)
  ]


def quality(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Accuracy with its interval, AUROC, log loss and calibration of scored rows.

  See `classification` for each. Of an ensemble they are those of the combined
  score, and there is the accuracy of each member, `accuracy_member_K`. Where
  rows have a `subset`, there is that of each: `accuracy_in_SUBSET`.
  """
  found = _metrics(rows) | by_subset(rows)
  names = [name for name in _SIDES if f"{name}_members" in rows[0]]
  members = len(rows[0][f"{names[0]}_members"]) if names else 0
  for k in range(members):
    alone = [
      row | {name: row[f"{name}_members"][k] for name in names} for row in rows
    ]
    found[f"accuracy_member_{k}"] = _metrics(alone)["accuracy"]
  return found


def by_subset(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Accuracy of the rows of each subset, with its 95 % Wilson interval.

  Returns:
    `accuracy_in_SUBSET`, `accuracy_in_SUBSET_low` and `accuracy_in_SUBSET_high`
    by subset; {} if rows have none, or more than `MOST_SUBSETS` of them.
  """
  groups: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    if row.get("subset"):
      groups.setdefault(row["subset"], []).append(row)
  if len(groups) > MOST_SUBSETS:
    logging.info(
      "The rows are of %d subsets, too many to give the accuracy of each.",
      len(groups),
    )
    return {}
  found = {}
  for name, group in zip(metric_names(groups), groups.values(), strict=True):
    measured = _metrics(group)
    for end in ("", "_low", "_high"):
      found[f"accuracy_in_{name}{end}"] = measured[f"accuracy{end}"]
  return found


def metric_names(subsets: Iterable[str]) -> list[str]:
  """Names of subsets in metrics: of letters, digits, "-" and "_" alone.

  Two that would have one name are told apart by a number.
  """
  names = (re.sub(r"[^\w-]+", "_", subset) for subset in subsets)
  return reward_functions.distinct(names)


def _metrics(rows) -> dict[str, float]:
  if "label" in rows[0]:
    return classification.binary_metrics(
      np.array([row["score"] for row in rows]),
      np.array([row["label"] for row in rows]),
    )
  return classification.preference_metrics(
    np.array([row["chosen"] for row in rows]),
    np.array([row["rejected"] for row in rows]),
  )
