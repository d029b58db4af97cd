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
same command goes on from there. `--backbone` runs those of one size alone and
`--tuning` those of one kind of tuning, so that two processes, each on cores of
its own, can share a table.
Tables: `benchmarks.paper_tables`. `--show` prints what there is as Markdown.
"""

import argparse
import math
import re
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
  paper_cells,
  paper_show,
  paper_tables,
  refusals,
  results,
)
from benchmarks.paper_cells import Cell, Lines
from benchmarks.paper_tables import Group
from launch import sweep_process
from perl_jax import files, json_text

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "paper"
WORKDIR = Path("runs/paper")
# Numbers of a summary that another machine, or a busier one, changes.
_OF_A_MACHINE = ("seconds", "seconds_compiling", "cpu_seconds", "peak_bytes")
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
  backbone: str = "",
  tuning: str = "",
  minutes: float = 60.0,
  start: Callable[[Sequence[str], float], int] | None = None,
) -> int:
  """Runs what has no line yet; returns the exit status of the last run.

  Args:
    table: A key of `paper_tables.TABLES`.
    workdir: Directory of all runs.
    data: Directory of the data that are not generated.
    backbone: Only groups of this backbone are run; "" runs all.
    tuning: Only groups of this kind of tuning are run; "" runs all.
    minutes: Longest time of a run, all its starts together.
    start: `start(arguments, seconds)` runs one, and returns its exit status.
  """
  start = start or _start
  groups, path = paper_tables.TABLES[table](), LINES / f"{table}.jsonl"
  asked = _asked(groups, backbone, tuning)
  lines = read(path)
  while (cell := paper_cells.next_cell(asked, lines)) is not None:
    try:
      needed = _missing(cell, workdir, lines)
    except KeyError as error:
      wanted = str(error.args[0]).rpartition("/")[0]
      print(f"{cell.name} waits for the runs of {wanted}.", file=sys.stderr)
      return 1
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
      line = _line(cell, workdir, given, data)
      # Other programs slow a run down; they change this hardly.
      line["summary"]["cpu_seconds"] = spent["cpu"]
      # Another process may have added lines of another backbone.
      lines = read(path) | {cell.name: line}
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_jsonl(path, [*lines.values()])
      print(results.in_line(_shown(line["summary"])), flush=True)
  return 0


def _asked(groups: Sequence[Group], backbone: str, tuning: str) -> list[Group]:
  return [
    group
    for group in groups
    if backbone in ("", group.backbone) and tuning in ("", group.tuning)
  ]


def _otherwise(
  cell: Cell, workdir: Path, groups: Sequence[Group], lines: Lines
) -> str:
  """What is to be done if a run came out other than its line; "" if it did not.

  Other code, or other versions of what it stands on, make other runs: what
  starts from one is not put beside what started from the other.
  """
  line = lines[cell.name]["summary"]
  found = _numbers(workdir / cell.name)
  keys = [
    key
    for key, value in line.items()
    if key not in _OF_A_MACHINE
    and all(isinstance(x, int | float) for x in (value, found.get(key)))
  ]
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
  """The first run that it stands on whose workdir is not there.

  Raises:
    KeyError: One that it stands on has no line: another process is to run it.
  """
  for other in paper_cells.starts_from(cell, lines).values():
    if other.name not in lines:
      raise KeyError(other.name)
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
  # As it is typed in a clone; where runs and data lie is this machine's affair.
  told = [argument.replace(str(workdir), str(WORKDIR)) for argument in given]
  told = [argument.replace(f"{ROOT}/", "") for argument in told]
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
  return {
    key: f"{summary[key]:.4g}" for key in paper_show.COLUMNS if key in summary
  }


def main() -> int:
  """Returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--table", choices=paper_tables.TABLES, required=True)
  parser.add_argument("--workdir", type=Path, default=WORKDIR)
  parser.add_argument("--data", default="", help="directory of hh-rlhf")
  parser.add_argument("--backbone", default="", help="this one alone")
  parser.add_argument("--tuning", default="", help="this kind alone")
  parser.add_argument("--minutes", type=float, default=60.0)
  parser.add_argument("--show", action="store_true")
  given = parser.parse_args()
  groups = paper_tables.TABLES[given.table]()
  asked = _asked(groups, given.backbone, given.tuning)
  if not asked:
    known = dict.fromkeys(f"{g.backbone}: {g.tuning or '-'}" for g in groups)
    parser.error(f"--backbone and --tuning are of {'; '.join(known)}")
  if given.show:
    print(paper_show.markdown(asked, read(LINES / f"{given.table}.jsonl")))
    return 0
  return run(
    given.table,
    given.workdir.absolute(),
    data=given.data,
    backbone=given.backbone,
    tuning=given.tuning,
    minutes=given.minutes,
  )


if __name__ == "__main__":
  sys.exit(main())
