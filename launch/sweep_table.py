"""The results of a sweep as one table, in Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

# Columns of the table without --columns, as far as a summary has them; the CSV
# file has all.
COLUMNS = (
  "accuracy", "auroc", "log_loss", "loss", "reward_before", "reward_after",
  "policy.reward", "kl", "trainable_share", "peak_bytes", "seconds",
)  # fmt: skip


def markdown(
  rows: Sequence[Mapping[str, Any]], axes: Sequence[str], columns: str
) -> str:
  """A Markdown table: swept fields, results, status."""
  there = list(dict.fromkeys(name for row in rows for name in row))
  if columns:
    shown = [name for name in columns.split(",") if name]
  else:
    shown = [name for name in COLUMNS if name in there]
    shown = shown or [n for n in there if n not in (*axes, "status")]
  heads = [*axes, *shown, "status"]
  lines = [heads, ["---"] * len(heads)]
  lines += [[_shown(row.get(name, "")) for name in heads] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: Any) -> str:
  text = f"{value:.5g}" if isinstance(value, float) else str(value)
  return text.replace("|", "\\|")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """CSV with all columns, a line for each run."""
  heads = list(dict.fromkeys(name for row in rows for name in row))
  out = io.StringIO()
  writer = csv.DictWriter(out, heads, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()
