"""Is a reward model better than the bag of words, on the same rows?

  python -m benchmarks.compare_reward --baseline runs/baseline/coffee.jsonl \
      --scores runs/coffee/reward_fold*/scores.jsonl

Rows are joined by id, and have to be exactly the rows of the baseline's folds;
with `--left_out=N` up to N of a fold may be missing, as a run leaves out those
that are too long, and both are compared on the others.
Prints the AUROC of both by fold, and over all folds, of raw scores and of ranks
within each fold (models of different folds do not share a scale), with the
interval of the difference by a paired bootstrap over groups. The last line is
the AUROC of both ranks added: what either knows that the other does not.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from perl_jax import classification
from perl_jax import files as files_lib


class Row(NamedTuple):
  """A line of a scores file; `where` names it in errors."""

  id: str
  group: str
  score: float
  label: float
  fold: int | None
  where: str


class Joined(NamedTuple):
  """Both scores of the rows of some folds, each `[n]`."""

  model: np.ndarray
  baseline: np.ndarray
  labels: np.ndarray
  groups: np.ndarray
  folds: np.ndarray

  def of(self, fold: int) -> "Joined":
    """The rows of one fold."""
    return Joined(*(column[self.folds == fold] for column in self))


class Comparison(NamedTuple):
  """A paired bootstrap, and the share of resamples where the model is better.

  Attributes:
    bootstrap: Difference of AUROC, model minus baseline.
    better: Share of resamples in which it is above 0; ties count half.
  """

  bootstrap: classification.BootstrapDifference
  better: float


def read(path: str | Path, *, folds: bool) -> list[Row]:
  """Reads the rows of a scores file.

  Args:
    path: JSON lines with id, group, score and label.
    folds: Whether they have a fold too, as those of the baseline do.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A line lacks a field or has a wrong value, an id occurs twice,
      or there is no line.
  """
  if not Path(path).is_file():
    raise FileNotFoundError(
      f"{path} does not exist. A pointwise reward run writes scores.jsonl,"
      " benchmarks.reward_baseline writes --out."
    )
  fields = ("id", "group", "score", "label") + (("fold",) if folds else ())
  rows = []
  for number, line in enumerate(files_lib.read_jsonl(path), start=1):
    where = f"{path}, row {number}"
    missing = [name for name in fields if name not in line]
    if missing:
      pairs = "chosen" in line
      raise ValueError(
        f"{where} has no {missing[0]!r}: it has {', '.join(sorted(line))}."
        + (" Pairs have no labels: compare pointwise runs." if pairs else "")
      )
    score, label = (_number(line[key], key, where) for key in fields[2:4])
    fold = int(_number(line["fold"], "fold", where)) if folds else None
    rows.append(Row(line["id"], line["group"], score, label, fold, where))
  if not rows:
    raise ValueError(f"{path} has no rows.")
  require_unique(rows)
  return rows


def _number(value: object, field: str, where: str) -> float:
  # Non-finite numbers are written as strings; both are refused alike.
  if type(value) not in (int, float) or not math.isfinite(value):
    raise ValueError(f"{where}: {field} is {value!r}, not a finite number.")
  return float(value)


def require_unique(rows: Iterable[Row]) -> None:
  """Checks that no id occurs twice.

  Raises:
    ValueError: Names the id, where it is, and what to do.
  """
  seen: dict[str, Row] = {}
  for row in rows:
    if row.id in seen:
      raise ValueError(
        f"The id {row.id!r} is in {seen[row.id].where} and in {row.where}:"
        " rows are joined by id. If two of the files are runs on the same"
        " fold, give one of them. If the data repeat an id, give each row its"
        " own, then score again and fit the baseline again."
      )
    seen[row.id] = row


def join(
  baseline: Sequence[Row],
  files: Sequence[Sequence[Row]],
  left_out: int = 0,
) -> Joined:
  """Joins the scores of the model and of the baseline by row id.

  Args:
    baseline: Rows of all folds.
    files: Rows of each scores file, which are those of one fold each.
    left_out: Most rows of a fold that its file may lack.

  Raises:
    ValueError: Two files share a row, or a file's rows are not those of one
      fold with the same groups and labels.
  """
  require_unique(row for rows in files for row in rows)
  by_id = {row.id: row for row in baseline}
  sizes: dict[int | None, int] = defaultdict(int)
  for row in baseline:
    sizes[row.fold] += 1
  found = []
  for rows in files:
    _require_fold(rows, by_id, sizes, left_out)
    for row in rows:
      other = by_id[row.id]
      if (row.group, row.label) != (other.group, other.label):
        raise ValueError(
          f"{row.where} ({row.id!r}) has label {row.label} and group"
          f" {row.group!r}, {other.where} has {other.label} and"
          f" {other.group!r}: they were made from different data."
        )
      found.append((row.score, other.score, row.label, row.group, other.fold))
  return Joined(*map(np.array, zip(*found, strict=True)))


def _require_fold(rows, by_id, sizes, left_out) -> None:
  way_out = (
    " Train and fit on the same folds: data.split_seed, data.folds and"
    " data.fold of the reward run's config are --seed, --folds and a fold of"
    " the baseline, with data.limit=0 and eval.rows=0."
  )
  unknown = [row for row in rows if row.id not in by_id]
  if unknown:
    raise ValueError(
      f"{unknown[0].where}: the baseline has no row {unknown[0].id!r}, nor"
      f" {len(unknown) - 1} others of {len(rows)}." + way_out
    )
  folds = sorted({by_id[row.id].fold for row in rows})
  if len(folds) > 1:
    raise ValueError(
      f"{rows[0].where} and the rows after it are of the baseline's folds"
      f" {folds}, not of one." + way_out
    )
  missing = sizes[folds[0]] - len(rows)
  if missing > left_out:
    raise ValueError(
      f"{rows[0].where} and the rows after it are {len(rows)}, but fold"
      f" {folds[0]} of the baseline has {sizes[folds[0]]}."
      + way_out
      + " Where the run left rows out as too long (its log says how many),"
      f" --left_out={missing} compares both on the others."
    )


def rank_within_folds(scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
  """Rank of each score in its fold, in (0, 1); ties share the mean."""
  ranks = np.empty(scores.size)
  for fold in np.unique(folds):
    rows = folds == fold
    ranks[rows] = (stats.rankdata(scores[rows]) - 0.5) / rows.sum()
  return ranks


def compare(rows: Joined, *, samples: int, seed: int) -> Comparison:
  """Bootstraps AUROC of the model minus AUROC of the baseline over groups."""
  groups = np.unique(rows.groups, return_inverse=True)[1]
  columns = rows.model, rows.baseline, rows.labels, groups
  bootstrap = classification.paired_bootstrap_auroc(
    *columns, samples=samples, seed=seed
  )
  # One resample at a time gives the differences themselves.
  differences = np.array(
    [
      classification.paired_bootstrap_auroc(
        *columns, samples=1, seed=seed + 1 + i
      ).mean
      for i in range(samples)
    ]
  )
  defined = differences[~np.isnan(differences)]
  wins = (
    np.mean((defined > 0) + 0.5 * (defined == 0)) if defined.size else np.nan
  )
  return Comparison(bootstrap, float(wins))


def report(rows: Joined, *, samples: int, seed: int) -> str:
  """A Markdown table: AUROC by fold and pooled, with the bootstrap."""
  lines = ["| fold | rows | model | baseline | difference |", "|---" * 5 + "|"]
  pairs = []
  for fold in np.unique(rows.folds):
    part = rows.of(fold)
    pair = [
      classification.auroc(s, part.labels) for s in (part.model, part.baseline)
    ]
    pairs.append(pair)
    lines.append(_line(f"{fold:.0f}", part.labels.size, *pair))
  lines.append(
    _line("mean of folds", rows.labels.size, *np.mean(pairs, axis=0))
  )
  ranked = rows._replace(
    model=rank_within_folds(rows.model, rows.folds),
    baseline=rank_within_folds(rows.baseline, rows.folds),
  )
  intervals = []
  for name, part in (("ranks within folds", ranked), ("raw scores", rows)):
    found, better = compare(part, samples=samples, seed=seed)
    lines.append(
      _line(f"pooled, {name}", rows.labels.size, found.auroc_a, found.auroc_b)
    )
    intervals.append(
      f"pooled, {name}: {found.difference:+.3f}, 95% interval"
      f" [{found.low:+.3f}, {found.high:+.3f}], P(better) = {better:.3f}"
    )
    if found.undefined:
      intervals[-1] += f" ({found.undefined} resamples had one class only)"
  size = np.unique(rows.groups).size
  lines += ["", f"Paired bootstrap over {size} groups, {samples} resamples:"]
  both = np.round(ranked.model + ranked.baseline, 9)  # ties stay ties
  alone = [
    classification.auroc(both[rows.folds == fold], rows.of(fold).labels)
    for fold in np.unique(rows.folds)
  ]
  pooled = classification.auroc(both, rows.labels)
  together = (
    f"Ranks of both added: mean of folds {np.mean(alone):.3f}, pooled"
    f" {pooled:.3f}."
  )
  return "\n".join([*lines, *intervals, together])


def _line(name: str, n: int, model: float, baseline: float) -> str:
  return (
    f"| {name} | {n} | {model:.3f} | {baseline:.3f} | {model - baseline:+.3f} |"
  )


def main() -> None:
  """Reads, joins and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--baseline", required=True)
  parser.add_argument("--scores", nargs="+", required=True)
  parser.add_argument(
    "--left_out", type=int, default=0, help="rows that a fold may lack"
  )
  parser.add_argument("--samples", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  baseline = read(flags.baseline, folds=True)
  files = [read(path, folds=False) for path in flags.scores]
  rows = join(baseline, files, flags.left_out)
  print(report(rows, samples=flags.samples, seed=flags.seed))
  absent = sorted({row.fold for row in baseline} - set(rows.folds))
  if absent:
    print(f"No scores for folds {absent} of the baseline: not counted.")


if __name__ == "__main__":
  main()
