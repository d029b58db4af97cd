"""Scores of rows of responses: what is written of them, and how good they are.

A row has one response, a pair, or lists of responses. See `reward_model` for
how a response is scored.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from perl_jax import classification, roles
from perl_jax.data import records
from perl_jax.interop import values as values_lib
from perl_jax.tasks.evaluation import benchmarks, intervals, reward_model
from perl_jax.tasks.evaluation import so_far as so_far_lib
from perl_jax.tasks.training import batching
from perl_jax.tasks.training.compiled import Compiled

_PAIR = ("chosen", "rejected")


class Scored(NamedTuple):
  """A row and the scores of its responses.

  Attributes:
    record: The row.
    scores: Score of each response.
    members: Scores of the members of an ensemble, of each response; None of a
      single model.
  """

  record: records.Candidates
  scores: list[float]
  members: list[list[float]] | None = None

  def of(self, side: str) -> list[Any]:
    """Scores of the responses of one side."""
    sides = self.record.sides
    return [s for s, at in zip(self.scores, sides, strict=True) if at == side]

  @property
  def is_pair(self) -> bool:
    """Whether there are chosen and rejected responses, or lists of them."""
    return "chosen" in self.record.sides

  @property
  def right(self) -> float:
    """Share of comparisons that chosen wins; a tie is a half."""
    chosen, rejected = (np.array(self.of(side)) for side in _PAIR)
    differences = chosen[:, None] - rejected[None, :]
    return float(np.mean(0.5 + 0.5 * np.sign(differences)))


def score(
  scorer: Compiled,
  role: roles.Role,
  data: batching.Inputs,
  mesh: jax.sharding.Mesh,
  *,
  combine: str = "mean",
  std_weight: float = 1.0,
  so_far: so_far_lib.Part = so_far_lib.NOTHING,
) -> list[Scored]:
  """Scores the responses of all rows, in the order of the rows.

  Args:
    scorer: From `reward_model.make_scorer`.
    role: The reward model, on the mesh.
    data: Rows of `records.Candidates`; those that do not fit are left out.
    mesh: Mesh that batches are placed on.
    combine: How the members' scores become one; see `reward_model.score_rows`.
    std_weight: Weight of the deviation in "mean_minus_std".
    so_far: See `reward_model.score_batches`.
  """
  found = reward_model.score_batches(scorer, role, data, mesh, so_far)
  labelled = all(row.label is not None for row in data.rows)
  kept = ("score", "label") if labelled else ("score",)
  columns = [{name: found[i][name] for name in kept} for i in sorted(found)]
  combined = reward_model.combine_rows(columns, combine, std_weight)
  flat = dict(zip(sorted(found), combined, strict=True))
  scored, first = [], 0
  for record in data.rows:
    indices = range(first, first + len(record.responses))
    first = indices.stop
    if indices.start not in flat:
      continue  # it does not fit
    of_row = [flat[i] for i in indices]
    for scores in of_row:
      reward_model.require_finite(scores, record.id)
    members = None
    if "score_members" in of_row[0]:
      members = [row["score_members"] for row in of_row]
    scored.append(Scored(record, [row["score"] for row in of_row], members))
  return scored


def names_of(record: records.Candidates, field: str) -> list[str]:
  """Names of the fields that a row gets, without those of members."""
  if "chosen" in record.sides:
    return [f"{field}_{side}" for side in _PAIR]
  return [field]


def check_free(rows: Sequence[records.Candidates], field: str) -> None:
  """Checks that no row has a field of the name that a score will have.

  Raises:
    ValueError: One has; names the row, the field, and the way out.
  """
  for row in rows:
    for name in names_of(row, field):
      taken = {name, f"{name}_members", f"{field}_label"} & {*row.fields}
      if taken:
        raise ValueError(
          f"{row.id}: field {min(taken)!r}: scores are written under this"
          " name, and the row has it already. Give another name, such as"
          " --config.field=reward_model."
        )


def written(row: Scored, field: str) -> dict[str, Any]:
  """A row of scores.jsonl: the row as it was given, with its scores.

  The score is `field`, or of a pair `field`_chosen and `field`_rejected; each
  is a list where the row has lists. Of an ensemble there are those of the
  members as well, under the same names and "_members". A row without an id gets
  its file and line, and one whose label is no number, or has another name, the
  number that was read as `field`_label.
  """
  record = row.record
  found = dict(record.fields) or _described(record)
  if found.get("id") is None:
    found = {"id": record.id} | {k: v for k, v in found.items() if k != "id"}
  if record.label is not None and not values_lib.is_number(found.get("label")):
    found[f"{field}_label"] = record.label
  for name, side in zip(
    names_of(record, field),
    _PAIR if row.is_pair else ("response",),
    strict=True,
  ):
    found[name] = _one(record, row.of(side))
    if row.members is not None:
      apart = row._replace(scores=row.members)
      found[f"{name}_members"] = _one(record, apart.of(side))
  return found


def _one(record: records.Candidates, values: list[Any]) -> Any:
  return values if record.listed else values[0]


def _described(record: records.Candidates) -> dict[str, Any]:
  """The fields of a row that is of no file."""
  found: dict[str, Any] = {"prompt": list(record.prompt)}
  found |= dict(zip(record.sides, record.responses, strict=True))
  return found if record.label is None else found | {"label": record.label}


def quality(rows: Sequence[Scored]) -> tuple[dict[str, float], dict[str, Any]]:
  """How well scores tell good responses from bad ones.

  Returns:
    Metrics, and the tables of benchmarks. Of pairs the metrics are those of
    `classification.preference_metrics` of all comparisons, except that the
    accuracy and its interval are of rows: a row with lists counts with its
    share of right comparisons. Of labelled responses they are those of
    `classification.binary_metrics`. There is the mean `score` with its
    deviation `score_std`; where rows have a subset, `accuracy_in_SUBSET` of
    each; and the scores of benchmarks.
  """
  scores = np.array([s for row in rows for s in row.scores])
  metrics = {"score": float(scores.mean()), "score_std": float(scores.std())}
  pairs = [row for row in rows if row.is_pair]
  labelled = [row for row in rows if row.record.label is not None]
  tables: dict[str, Any] = {}
  if pairs:
    metrics |= _of_pairs(pairs)
    more, tables = benchmarks.of_rows(list(map(_benchmarked, pairs)))
    metrics |= more
  elif labelled:
    metrics |= classification.binary_metrics(
      np.array([row.scores[0] for row in labelled]),
      np.array([row.record.label for row in labelled]),
    )
  measured = len(pairs) or len(labelled)
  if 0 < measured < len(rows):
    kind = "pairs" if pairs else "responses with labels"
    logging.info(
      "score: accuracy is of the %d rows that are %s, of %d.",
      measured,
      kind,
      len(rows),
    )
  return metrics | {"n": len(rows), "responses": len(scores)}, tables


def _of_pairs(pairs: Sequence[Scored]) -> dict[str, float]:
  chosen, rejected = [], []
  for row in pairs:
    for good in row.of("chosen"):
      for bad in row.of("rejected"):
        chosen.append(good)
        rejected.append(bad)
  found = classification.preference_metrics(chosen, rejected)
  found |= _accuracy(pairs).named("accuracy")
  by_subset: dict[str, list[Scored]] = {}
  for row in pairs:
    if row.record.subset:
      by_subset.setdefault(row.record.subset, []).append(row)
  if len(by_subset) <= reward_model.MOST_SUBSETS:
    names = reward_model.metric_names(by_subset)
    for name, part in zip(names, by_subset.values(), strict=True):
      found |= _accuracy(part).named(f"accuracy_in_{name}")
  return found


def _accuracy(pairs: Sequence[Scored]) -> intervals.Estimate:
  """Mean of the shares of right comparisons, a trial a row, with Wilson's ends.

  Rows with lists share responses among their comparisons, which are no trials
  of their own.
  """
  right = np.array([row.right for row in pairs])
  low, high = classification.wilson_interval(right.sum(), right.size)
  return intervals.Estimate(float(right.mean()), low, high)


def _benchmarked(row: Scored) -> benchmarks.Row:
  record = row.record
  own = record.fields.get("id")
  return benchmarks.Row(
    record.id if own is None else str(own),
    record.subset,
    row.of("chosen"),
    row.of("rejected"),
    record.listed,
  )
