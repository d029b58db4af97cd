"""The paper's tables on backbones that fit a small machine, run by run.

  python -m benchmarks.paper --table=coffee --workdir=runs/paper
  python -m benchmarks.paper --table=harmless --workdir=runs/paper --data=DIR
  python -m benchmarks.paper --table=taskmaster --workdir=runs/paper --data=DIR
  python -m benchmarks.paper --table=coffee --show

Every run is one `python -m perl_jax.main` in a workdir of its own, started as
those of launch/sweep.py are, and becomes a line of
benchmarks/paper/TABLE.jsonl, which is committed: with command, machine, and all
numbers of its summary. What has a line is not run again, but where a later run
starts from a workdir that is not there. A run that takes longer than
`--minutes`, all its starts together, is told to stop; with more minutes the
same command goes on from there.
Tables: `benchmarks.paper_tables`. `--show` prints what there is as Markdown.
"""

import argparse
import math
import re
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
  paper_cells,
  paper_ratios,
  paper_tables,
  refusals,
  results,
)
from benchmarks.paper_cells import Cell, Lines
from benchmarks.paper_tables import Group
from launch import sweep_process
from perl_jax import files, json_text
from perl_jax.reporting import vocabulary

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "paper"
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
# The last ones are not the same on each machine.
_OF_MACHINE = COLUMNS.index("peak_bytes")
_SIDES = ("policy", "anchor", "against", "response")
_UNITS = {"peak_bytes": ", MiB", "seconds": ", s", "cpu_seconds": ", s"}
# The numbers of the only judge of a run.
_JUDGE = re.compile(r"by\..*\.(\w+)")


def arguments(cell: Cell, workdir: Path, lines: Lines, data: str) -> list[str]:
  """What a user would type after `python -m perl_jax.main`."""
  group = cell.group
  fields = dict(group.fields) | {"seed": cell.seed}
  if cell.rate is not None:
    fields["optimizer.learning_rate"] = cell.rate
  if data and group.data not in ("coffee_bar", "jsonl"):
    fields["data.dir"] = data
  for role, other in paper_cells.starts_from(cell, lines).items():
    if role == "judges":
      fields[role] = f"reward:{workdir / other.name}"
    else:
      fields[f"{role}.init"] = workdir / other.name
  return [
    f"--config={ROOT}/configs/{group.stage}.py:{group.data}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
    f"--workdir={workdir / cell.name}",
  ]


def run(
  table: str,
  workdir: Path,
  *,
  data: str = "",
  minutes: float = 60.0,
  start: Callable[[Sequence[str], float], int] | None = None,
) -> int:
  """Runs what has no line yet; returns the exit status of the last run.

  Args:
    table: A key of `paper_tables.TABLES`.
    workdir: Directory of all runs.
    data: Directory of the data that are not generated.
    minutes: Longest time of a run, all its starts together.
    start: `start(arguments, seconds)` runs one, and returns its exit status.
  """
  start = start or _start
  groups, path = paper_tables.TABLES[table](), LINES / f"{table}.jsonl"
  lines = read(path)
  while (cell := paper_cells.next_cell(groups, lines)) is not None:
    needed = _missing(cell, workdir, lines)
    given = arguments(needed or cell, workdir, lines, data)
    name = (needed or cell).name
    print(name, flush=True)
    status, spent = _timed(
      workdir / f"{name}.seconds.json", minutes, given, start
    )
    if status:
      return status
    if needed and (told := _otherwise(needed, workdir, groups, lines)):
      print(told, file=sys.stderr)
      return 1
    if needed is None:
      lines[cell.name] = line = _line(cell, workdir, given, data)
      # Other programs slow a run down; they change this hardly.
      line["summary"]["cpu_seconds"] = spent["cpu"]
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_jsonl(path, [*lines.values()])
      print(results.in_line(_shown(line["summary"])), flush=True)
  return 0


def _otherwise(
  cell: Cell, workdir: Path, groups: Sequence[Group], lines: Lines
) -> str:
  """What is to be done if a run came out other than its line; "" if it did not.

  Other code, or other versions of what it stands on, make other runs: what
  starts from one is not put beside what started from the other.
  """
  line = lines[cell.name]["summary"]
  found = _numbers(workdir / cell.name)
  keys = [key for key in COLUMNS[:_OF_MACHINE] if key in line and key in found]
  wrong = [k for k in keys if not math.isclose(line[k], found[k], rel_tol=1e-3)]
  if not wrong:
    return ""
  names = paper_cells.standing_on(cell, groups, lines)
  return (
    f"{cell.name} was made again, and came out otherwise: {wrong[0]} is"
    f" {found[wrong[0]]:.5g}, and {line[wrong[0]]:.5g} in its line. Take the"
    " lines of it and of what stands on it out, and the same command makes them"
    f" anew: {', '.join([cell.name, *names])}."
  )


def _timed(
  place: Path,
  minutes: float,
  given: Sequence[str],
  start: Callable[[Sequence[str], float], int],
) -> tuple[int, dict[str, float]]:
  """(exit status, seconds of all starts so far, which a file keeps)."""
  spent = {"wall": 0.0, "cpu": 0.0}
  if place.exists():
    spent = json_text.read_object(place)
  left = 60 * minutes - spent["wall"]
  if left <= 0:
    print(
      f"It has taken {spent['wall'] / 60:.0f} minutes: --minutes is more, or"
      " what is asked of it less.",
      file=sys.stderr,
    )
    return 1, spent
  wall, cpu = time.monotonic(), _cpu_seconds()
  status = start(given, left)
  spent = {
    "wall": spent["wall"] + time.monotonic() - wall,
    "cpu": spent["cpu"] + _cpu_seconds() - cpu,
  }
  place.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(place, spent)
  return status, spent


def read(path: Path) -> dict[str, dict[str, Any]]:
  """Lines by the name of their cell; none if there is no file."""
  rows = files.read_jsonl(path) if path.exists() else []
  return {row["cell"]: row for row in rows}


def _missing(cell: Cell, workdir: Path, lines: Lines) -> Cell | None:
  """The first run that it stands on whose workdir is not there."""
  for other in paper_cells.starts_from(cell, lines).values():
    if not (workdir / other.name / "summary.json").is_file():
      return _missing(other, workdir, lines) or other
  return None


def _start(given: Sequence[str], seconds: float) -> int:
  words = [sys.executable, "-m", "perl_jax.main", *given]
  return sweep_process.call(words, seconds, ROOT)


def _cpu_seconds() -> float:
  """CPU time of all child processes that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _line(
  cell: Cell, workdir: Path, given: Sequence[str], data: str
) -> dict[str, Any]:
  summary = _numbers(workdir / cell.name)
  # As it is typed in a clone; where the data lie is this machine's affair.
  told = [argument.replace(f"{ROOT}/", "") for argument in given]
  if data:
    told = [argument.replace(data, "DIR") for argument in told]
  return {
    "cell": cell.name,
    "rate": cell.rate,
    "seed": cell.seed,
    "summary": summary,
    "command": shlex.join(["python", "-m", "perl_jax.main", *told]),
    "machine": results.machine(),
    "ended": time.strftime("%Y-%m-%d"),
  }


def _numbers(place: Path) -> dict[str, Any]:
  """The summary of a run, and who refuses in it."""
  summary = json_text.read_object(place / "summary.json")
  for name in ("verdicts.jsonl", "responses.jsonl"):
    if (place / name).exists():
      summary |= refusals.rates(files.read_jsonl(place / name))
  return {_JUDGE.sub(r"judge.\1", key): summary[key] for key in summary}


def _shown(summary: Mapping[str, Any]) -> dict[str, Any]:
  return {key: f"{summary[key]:.4g}" for key in COLUMNS if key in summary}


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


def main() -> int:
  """Returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--table", choices=paper_tables.TABLES, required=True)
  parser.add_argument("--workdir", type=Path, default=Path("runs/paper"))
  parser.add_argument("--data", default="", help="directory of hh-rlhf")
  parser.add_argument("--minutes", type=float, default=60.0)
  parser.add_argument("--show", action="store_true")
  given = parser.parse_args()
  if given.show:
    groups = paper_tables.TABLES[given.table]()
    print(markdown(groups, read(LINES / f"{given.table}.jsonl")))
    return 0
  return run(
    given.table,
    given.workdir.absolute(),
    data=given.data,
    minutes=given.minutes,
  )


if __name__ == "__main__":
  sys.exit(main())
