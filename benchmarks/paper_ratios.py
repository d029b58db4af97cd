"""What LoRA takes of full tuning in the runs of a table, beside the paper."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import paper_cells
from benchmarks.paper_cells import Lines
from benchmarks.paper_tables import Group

# The paper's table 1, by stage and data: peak memory, and speed-up.
PAPER: Mapping[tuple[str, str], tuple[str, str]] = {
  ("reward", "hh_rlhf"): ("43 %", "1.6×"),
  ("rl", "hh_rlhf"): ("80 %", "1.3×"),
}
_FULL = "full"


def markdown(groups: Sequence[Group], lines: Lines) -> str:
  """A table with a row for each kind of LoRA beside full tuning; "" of none.

  Memory is the mean of the compiler's peaks over the seeds, as a share of full
  tuning's. Speed is full tuning's processor time over LoRA's, of whole runs,
  evaluations included.
  """
  found = {
    (group.stage, group.data, group.backbone, group.tuning): measured
    for group in groups
    if (measured := paper_cells.measured(group, lines))
  }
  rows = []
  for (stage, data, backbone, tuning), mine in found.items():
    full = found.get((stage, data, backbone, _FULL))
    if tuning == _FULL or not full:
      continue
    memory = _ratio(mine, full, "peak_bytes")
    speed = _ratio(full, mine, "cpu_seconds")
    if memory is None:  # nothing was trained
      continue
    of_paper = ("", "")
    if "attention" in tuning:  # as the paper's adapters
      of_paper = PAPER.get((stage, data), of_paper)
    cells = (stage, data, backbone, tuning, f"{100 * memory:.0f} %")
    rows.append((*cells, "" if speed is None else f"{speed:.2f}×", *of_paper))
  if not rows:
    return ""
  names = ("stage", "data", "backbone", "tuning", "memory", "speed")
  header = (*names, "memory in the paper", "speed in the paper")
  table = [header, ("---",) * len(header), *rows]
  text = "\n".join("| " + " | ".join(row) + " |" for row in table)
  return f"LoRA against full tuning\n\n{text}"


def _ratio(
  upper: Sequence[Mapping[str, Any]],
  lower: Sequence[Mapping[str, Any]],
  key: str,
) -> float | None:
  """Mean of a number over that of others; None where no run has it."""
  means = [
    statistics.fmean(values)
    for side in (upper, lower)
    if (values := [summary[key] for summary in side if key in summary])
  ]
  return means[0] / means[1] if len(means) == 2 and means[1] else None
