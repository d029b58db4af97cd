"""Scores a reward model on held-out rows."""

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import classification, hosts, roles, sharding, steps
from perl_jax import params as params_lib
from perl_jax.objectives import ensembles

SCORES = "scores.jsonl"
_SIDES = ("chosen", "rejected", "score")


def make_scorer(backbone: roles.Backbone, max_response: int, members: int = 1):
  """Returns `score(trainable, frozen, tokens, lengths, prompt_lengths)`.

  `[B]` float32; of an ensemble `[members, B]`.
  """

  def score(trainable, frozen, tokens, lengths, prompt_lengths):
    return steps.reward_scores(
      backbone,
      params_lib.combine(trainable, frozen),
      tokens,
      lengths,
      prompt_lengths,
      max_response=max_response,
    )

  if members > 1:
    return jax.vmap(score, in_axes=(0, None, None, None, None))
  return score


def score_rows(
  score,
  trainable,
  frozen,
  data,
  loss,
  mesh,
  *,
  combine: str = "mean",
  std_weight: float = 1.0,
):
  """Scores of all validation rows, in their order, for scores.jsonl.

  Those of an ensemble are combined, and beside them as they are, a list.
  """
  found = {}
  for batch in data.validation():
    device = sharding.place_batch(mesh, batch)
    if loss == "pairwise":
      columns = {
        side: score(trainable, frozen, tokens, lengths, device.prompt_lengths)
        for side, tokens, lengths in (
          ("chosen", device.chosen_tokens, device.chosen_lengths),
          ("rejected", device.rejected_tokens, device.rejected_lengths),
        )
      }
    else:
      columns = {
        "score": score(
          trainable,
          frozen,
          device.tokens,
          device.lengths,
          device.prompt_lengths,
        ),
        "label": device.labels,
      }
    batch, columns = hosts.to_host((device, columns))
    for row in np.flatnonzero(batch.valid):
      index = int(batch.index[row])
      record = data.rows[index]
      found[index] = {"id": record.id, "group": record.group} | {
        name: column[..., row].tolist() for name, column in columns.items()
      }
  rows = [found[i] for i in sorted(found)]
  return combine_rows(rows, combine, std_weight)


def combine_rows(rows, how: str, std_weight: float):
  """Puts one score in place of the members', which move to NAME_members.

  The centre of a member is its mean over all responses of the rows, where
  labels do not say what 0 is; see `ensembles.combine_scores`.
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


def quality(rows) -> dict[str, float]:
  """Accuracy with its interval, AUROC, log loss, calibration: see there.

  Of an ensemble: of its combined score, and the accuracy of each member.
  """
  found = _metrics(rows)
  names = [name for name in _SIDES if f"{name}_members" in rows[0]]
  members = len(rows[0][f"{names[0]}_members"]) if names else 0
  for k in range(members):
    alone = [
      row | {name: row[f"{name}_members"][k] for name in names} for row in rows
    ]
    found[f"accuracy_member_{k}"] = _metrics(alone)["accuracy"]
  return found


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
