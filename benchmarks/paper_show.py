"""Tables of `benchmarks.paper` as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import paper_cells, paper_ratios
from benchmarks.paper_cells import Lines
from benchmarks.paper_tables import Group
from perl_jax.reporting import vocabulary

# Key of a summary, in the order of the columns; those that a stage has.
COLUMNS = (
  "accuracy",
  "auroc",
  "log_loss",
  "gold_before",
  "gold_after",
  "reward_before",
  "reward_after",
  "kl",
  "length_after",
  "judge.win_rate_ties_half",
  "judge.win_rate_length_controlled",
  "policy.length",
  "anchor.length",
  "policy.refusal_rate",
  "against.refusal_rate",
  "response.refusal_rate",
  "trainable_parameters",
  "peak_bytes",
  "seconds",
  "cpu_seconds",
)
_SIDES = ("policy", "anchor", "against", "response")
_UNITS = {"peak_bytes": ", MiB", "seconds": ", s", "cpu_seconds": ", s"}


def markdown(groups: Sequence[Group], lines: Lines) -> str:
  """A table for each stage: a row for each group whose trials are done.

  And one of what LoRA takes of full tuning, see `paper_ratios`.

  Cells are the mean and the sample standard deviation over the seeds that are
  there, whose number the table has; of one seed the number and the interval
  over its rows, where it has one.
  """
  parts = []
  for stage in dict.fromkeys(group.stage for group in groups):
    rows = []
    for group in groups:
      if group.stage != stage:
        continue
      if found := paper_cells.measured(group, lines):
        first = paper_cells.seeds(group, lines)[0]
        rows.append((group, first.rate or first.policy_rate, found))
    if rows:
      parts.append(_table(stage, rows))
  parts.append(paper_ratios.markdown(groups, lines))
  return "\n\n".join(filter(None, parts))


def _table(
  stage: str, rows: Sequence[tuple[Group, float | None, list[Mapping]]]
) -> str:
  keys = [
    k for k in COLUMNS if any(k in s for _, _, found in rows for s in found)
  ]
  header = ["data", "backbone", "tuning", "rate", "seeds"]
  header += [_label(key) for key in keys]
  lines = [
    f"{stage}",
    "",
    "| " + " | ".join(header) + " |",
    "|" + " --- |" * len(header),
  ]
  for group, rate, found in rows:
    cells = [group.data, group.backbone, group.tuning]
    cells += ["" if rate is None else f"{rate:g}", f"{len(found)}"]
    cells += [_cell(key, [s for s in found if key in s]) for key in keys]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _label(key: str) -> str:
  side, _, _ = key.partition(".")
  of = f", {side}" if side in _SIDES else ""
  return vocabulary.label_of(key) + of + _UNITS.get(key, "")


def _cell(key: str, found: Sequence[Mapping[str, Any]]) -> str:
  """Mean and deviation of several runs; one run has its 95 % interval."""
  if not found:
    return ""
  share = key.endswith("refusal_rate") or vocabulary.row_of(key).percent
  scale, unit = (100, " %") if share else (1, "")
  if key == "peak_bytes":
    scale = 2**-20
  if key == "trainable_parameters":
    return f"{found[0][key]:,.0f}"
  values = [summary[key] for summary in found]
  text = f"{scale * statistics.fmean(values):.4g}"
  if len(values) > 1:
    return f"{text} ± {scale * statistics.stdev(values):.2g}{unit}"
  ends = [found[0].get(f"{key}_{end}") for end in ("low", "high")]
  if None not in ends:
    low, high = (f"{scale * end:.4g}" for end in ends)
    unit += f" ({low} to {high})"
  return text + unit
