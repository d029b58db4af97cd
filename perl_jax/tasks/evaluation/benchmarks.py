"""RewardBench, RewardBench 2 and RM-Bench of scored rows that are theirs.

A row belongs to RewardBench by its subset, to RewardBench 2 by its subset if it
has lists of responses, and to RM-Bench by its domain if it has three responses
of each side.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from perl_jax.tasks.evaluation import (
  intervals,
  rewardbench,
  rewardbench2,
  rm_bench,
)

# Metrics by name, and tables of one benchmark.
Found = tuple[dict[str, float], dict[str, Any]]


class Row(NamedTuple):
  """Scores of a row with chosen and rejected responses.

  Attributes:
    id: Its id in the benchmark.
    subset: The part of the benchmark that it belongs to, or "".
    chosen: Scores of its chosen responses.
    rejected: Scores of its rejected ones.
    listed: Whether it has lists of them.
  """

  id: str
  subset: str
  chosen: Sequence[float]
  rejected: Sequence[float]
  listed: bool


def of_rows(rows: Sequence[Row]) -> Found:
  """(metrics, tables by benchmark) of the rows that are of one."""
  mine: dict[str, list[Row]] = {}
  for row in rows:
    mine.setdefault(_benchmark_of(row), []).append(row)
  metrics: dict[str, float] = {}
  tables: dict[str, Any] = {}
  for name, measure in _BENCHMARKS.items():
    if name in mine:
      numbers, tables[name] = measure(mine[name])
      metrics |= numbers
  return metrics, tables


def _benchmark_of(row: Row) -> str:
  """The benchmark that a row belongs to, or ""."""
  if row.subset in rewardbench.SUBSETS:
    return rewardbench.OVERALL
  if row.listed and row.subset in rewardbench2.SUBSETS:
    return rewardbench2.OVERALL
  styles = len(row.chosen) == len(row.rejected) == len(rm_bench.STYLES)
  if styles and rm_bench.domain_of(row.subset) in rm_bench.DOMAINS:
    return rm_bench.OVERALL
  return ""


def _of_rewardbench(rows: Sequence[Row]) -> Found:
  right: dict[str, list[bool]] = {}
  for row in rows:
    is_right = min(row.chosen) > max(row.rejected)
    right.setdefault(row.subset, []).append(is_right)
  sections = rewardbench.sections(right)
  metrics: dict[str, float] = {}
  for name, estimate in sections.items():
    metrics |= estimate.named(name)
  missing = rewardbench.missing(right)
  fewer = rewardbench.fewer(right)
  if missing:
    logging.warning(
      "RewardBench: there are no rows of %s; the sections are of the others.",
      ", ".join(missing),
    )
  if fewer:
    logging.warning(
      "RewardBench: there are fewer pairs than it has, which may be harder or"
      " easier than all: %s. Rows that are too long are left out: raise"
      " data.max_len.",
      ", ".join(f"{n} of {size} of {k}" for k, (n, size) in fewer.items()),
    )
  subsets = {
    name: estimate._asdict() | {"n": len(right[name])}
    for name, estimate in rewardbench.subsets(right).items()
  }
  return metrics, {
    "sections": _plain(sections),
    "subsets": subsets,
    "missing": missing,
    "fewer": fewer,
  }


def _of_rewardbench2(rows: Sequence[Row]) -> Found:
  worths: dict[str, list[float]] = {}
  several = []
  for row in rows:
    if row.subset == rewardbench2.TIES:
      several.append((row.id, row.chosen, row.rejected))
    else:
      worth = rewardbench2.worth(row.chosen, row.rejected)
      worths.setdefault(row.subset, []).append(worth)
  of_ties = rewardbench2.ties(several)
  if 2 * len(of_ties) < len(several):
    logging.warning(
      "RewardBench 2: %d of %d rows of Ties are left out, as a prompt needs two"
      " of them, with the ids 'ref:N' and 'tied:N'.",
      len(several) - 2 * len(of_ties),
      len(several),
    )
  found = rewardbench2.results(worths, of_ties)
  metrics: dict[str, float] = {}
  for name, estimate in found.items():
    metrics |= estimate.named(name)
  missing = [
    name
    for name in rewardbench2.SUBSETS
    if rewardbench2.key_of(name) not in found
  ]
  if missing:
    logging.warning(
      "RewardBench 2: there are no rows of %s, and so no score overall.",
      ", ".join(missing),
    )
  counts = {name: len(part) for name, part in worths.items()}
  counts |= {rewardbench2.TIES: len(of_ties)} if len(of_ties) else {}
  return metrics, {"scores": _plain(found), "n": counts, "missing": missing}


def _of_rm_bench(rows: Sequence[Row]) -> Found:
  styled: dict[str, list[np.ndarray]] = {}
  for row in rows:
    matrix = rm_bench.comparisons(row.chosen, row.rejected)
    styled.setdefault(row.subset, []).append(matrix)
  found = rm_bench.results(styled)
  metrics: dict[str, float] = {}
  for level, estimate in found["overall"].items():
    end = "" if level == "average" else f"_{level}"
    metrics |= estimate.named(f"{rm_bench.OVERALL}{end}")
  missing = []
  for name in rm_bench.DOMAINS:
    if name in found["domains"]:
      average = found["domains"][name]["average"]
      metrics |= average.named(f"{rm_bench.OVERALL}_{name}")
    else:
      missing.append(name)
  if missing:
    logging.warning(
      "RM-Bench: there are no rows of the domains %s; the means are of the"
      " others.",
      ", ".join(missing),
    )
  table = {"styles": rm_bench.STYLES, "missing": missing} | _plain(found)
  return metrics, table


_BENCHMARKS = {
  rewardbench.OVERALL: _of_rewardbench,
  rewardbench2.OVERALL: _of_rewardbench2,
  rm_bench.OVERALL: _of_rm_bench,
}


def _plain(value: Any) -> Any:
  """Estimates as objects, however deep."""
  if isinstance(value, intervals.Estimate):
    return value._asdict()
  if isinstance(value, Mapping):
    return {name: _plain(item) for name, item in value.items()}
  return value
