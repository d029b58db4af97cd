#!/usr/bin/env python3
"""Runs a grid of configs, here or as one job each, and writes one table.

  python launch/sweep.py --workdir=runs/sweep --config=configs/reward.py \
      --config.reward.init=runs/sft --config.lora.rank=2,4,8 \
      --config.optimizer.learning_rate=1e-3,2e-3 --config.seed=0

A field whose value has commas is an axis of the grid; all others go to every
run. Commas within brackets or quotes do not separate values:
`--config.data.buckets='(40,),(64,)'` is two values,
`--config.data.buckets='(40,64)'` is one.

By default the runs are started one after the other on this machine. The same
command continues a sweep that was interrupted: finished runs are kept, and the
one that was running resumes. With
`--submit="sbatch --ntasks=2 launch/slurm.sbatch"` each run is a job instead,
and the same command later, with `--table`, collects what is there.

A run that takes longer than `--minutes` is told to stop, and saves. The next
one starts, and the same command later goes on with it.

With `--together=8` runs that differ in nothing but the seed, learning rates,
`lora.alpha`, `beta` and `kl.target` are trained up to eight at once, as members
of one run (docs/members.md): on one base, in the memory of one and a little.
Those that cannot be, as with full tuning, are still made one after the other.
"""

import argparse
import itertools
import json
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script has the place of its own file there

from launch import check, sweep_process, sweep_table  # noqa: E402
from launch.sweep_grid import Job, Run, grid, jobs_of  # noqa: E402
from perl_jax.buckets import addresses  # noqa: E402
from perl_jax.starting import STATUS as STOPPED  # noqa: E402

# A run that is there, or waits in a queue, and is not the one that is meant.
OTHERWISE = "made with other arguments"


def main(argv: Sequence[str]) -> int:
  """Returns the exit status.

  It is 1 if a run has failed, 2 if none was started since the config of one is
  wrong, and 75 if one was stopped.
  """
  options, arguments = parse(argv)
  runs = grid(arguments, options.workdir)
  jobs = apart(jobs_of(runs, options.together), runs)
  if options.dry_run:
    for job in jobs:
      print(shlex.join(command(job.run, options.submit)))
    return 0
  wrong = [] if options.table else refusals([job.run for job in jobs])
  if wrong:
    print("\n".join(f"error: {line}" for line in wrong), file=sys.stderr)
    return 2
  statuses: dict[str, str] = {}
  for number, (run, points) in enumerate(jobs, start=1):
    if options.table:
      break
    several = f" ({len(points)} members)" if len(points) > 1 else ""
    print(f"sweep: {number} of {len(jobs)}: {run.name}{several}", flush=True)
    statuses[run.name] = start(run, options)
    if statuses[run.name] == "stopped":
      print("sweep: stopped; the same command goes on", file=sys.stderr)
      return STOPPED
    if statuses[run.name].startswith("failed") and options.fail_fast:
      break
  # In the order of the grid, whatever was trained together.
  found = {
    point.name: row_of(
      point, run, statuses.get(run.name, "not finished"), options.table
    )
    for run, points in jobs
    for point in points
  }
  rows = [found[run.name] for run in runs]
  text = sweep_table.markdown(rows, list(runs[0].point), options.columns)
  options.workdir.mkdir(parents=True, exist_ok=True)
  (options.workdir / "sweep.md").write_text(text, encoding="utf-8")
  (options.workdir / "sweep.csv").write_text(
    sweep_table.as_csv(rows), encoding="utf-8"
  )
  print(f"\n{text}\n{options.workdir}/sweep.md and sweep.csv have it too.")
  failed = [name for name, s in statuses.items() if s.startswith("failed")]
  if failed:
    print(f"failed: {', '.join(failed)}", file=sys.stderr)
  return int(bool(failed))


def _directory(text: str) -> pathlib.Path:
  if addresses.is_url(text):
    raise argparse.ArgumentTypeError(
      f"{text} is no directory: a sweep keeps its runs and its table on this"
      " machine. A single run may have its workdir in a bucket."
    )
  return pathlib.Path(text)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns (options of the sweep, arguments of the runs)."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--workdir", type=_directory, required=True, help="a directory for all"
  )
  parser.add_argument(
    "--submit", default="", help="command that takes a run's arguments as a job"
  )
  parser.add_argument(
    "--resubmit", action="store_true", help="also what was submitted before"
  )
  parser.add_argument(
    "--table", action="store_true", help="starts nothing, collects results"
  )
  parser.add_argument(
    "--columns", default="", help="of summary.json, with commas; for the table"
  )
  parser.add_argument(
    "--together", type=int, default=1, help="runs to train at once, as members"
  )
  parser.add_argument(
    "--fail_fast", action="store_true", help="stops at the first failed run"
  )
  parser.add_argument(
    "--minutes", type=float, help="longest time of a run that is started here"
  )
  parser.add_argument(
    "--dry-run", "--dry_run", action="store_true", help="prints the commands"
  )
  options, rest = parser.parse_known_args(argv)
  options.workdir = options.workdir.expanduser()
  for argument in rest:
    if not re.match(r"--[\w.]+(=|$)", argument):
      parser.error(
        f"{argument!r}: arguments of a run are --config=FILE and"
        " --config.FIELD=VALUES, with an equals sign"
      )
  if not any(argument.startswith("--config=") for argument in rest):
    parser.error("--config=FILE is missing")
  try:
    grid(rest, options.workdir)
  except ValueError as error:
    parser.error(str(error))
  return options, rest


def command(run: Run, submit: str) -> list[str]:
  """The command that starts a run."""
  if submit:
    return [*shlex.split(submit), *run.arguments]
  return [sys.executable, "-m", "perl_jax.main", *run.arguments]


def start(run: Run, options: argparse.Namespace) -> str:
  """Runs or submits one run unless it has finished; returns its status."""
  if finished(run):
    return "finished"
  note = options.workdir / f"{run.name}.submitted"
  words = command(run, options.submit)
  if options.submit and note.exists() and not options.resubmit:
    if shlex.split(note.read_text()) == words:
      print("sweep: was submitted before; with --resubmit it is again")
      return "submitted"
    print(
      f"sweep: {note.name} was made by other arguments, and nothing is"
      " submitted. Give another --workdir; or --resubmit, once that job is over"
      f" and {run.workdir} is gone."
    )
    return OTHERWISE
  # A job has the limits of its queue.
  limited = options.minutes is not None and not options.submit
  seconds = 60 * options.minutes if limited else None
  begun = time.monotonic()
  status = sweep_process.call(words, seconds)
  if status == STOPPED:
    late = seconds is not None and time.monotonic() - begun >= seconds
    return "out of time" if late else "stopped"
  if status:
    return f"failed (exit status {status})"
  if options.submit:
    options.workdir.mkdir(parents=True, exist_ok=True)
    note.write_text(shlex.join(words) + "\n")
    return "submitted"
  return "finished"


def refusals(runs: Sequence[Run]) -> list[str]:
  """What is wrong with the configs of runs, a line for each.

  Where the packages that read configs are not installed, none is read.
  """
  found = {run.name: check.refusal(run.arguments) for run in runs}
  return [f"{name}: {line}" for name, line in found.items() if line]


def apart(jobs: Sequence[Job], runs: Sequence[Run]) -> list[Job]:
  """The jobs, but for those whose points cannot be members of one run.

  Each of these is a job of its own, as with full tuning, which has no base to
  share. Where the packages that read configs are not installed, all are kept.

  Args:
    jobs: What `jobs_of` makes of the points.
    runs: The points.
  """
  try:
    from perl_jax.tasks.settings import members, overrides
  except ModuleNotFoundError:
    return [*jobs]
  alone, found = {run.name: run for run in runs}, []
  for job in jobs:
    single = [alone[point.name] for point in job.points]
    argv = ["", *job.run.arguments]
    if len(single) > 1 and overrides.refusal(argv) is None:
      config = overrides.config_of(argv)
      if config.tuning is None:  # chosen for the backbone, once it is read
        config.tuning = "lora"
      try:
        members.check_together(config, len(single))
      except ValueError as error:
        why = str(error).partition(". ")[0]
        print(f"sweep: {job.run.name}, one after the other: {why}.")
        found += [Job(run, [run]) for run in single]
        continue
    found.append(job)
  return found


def finished(run: Run) -> bool:
  """Whether a run has results, from exactly these arguments."""
  return (
    (run.workdir / "summary.json").is_file()
    and told_so(run)
    and has_last_checkpoints(run.workdir)
  )


def told_so(run: Run) -> bool:
  """Whether a workdir was made by exactly these arguments."""
  told = run.workdir / "command.txt"
  if not told.is_file():
    return False
  # The flags of several hosts say nothing about what was trained.
  before = {
    argument
    for argument in shlex.split(told.read_text(encoding="utf-8"))
    if argument.startswith(("--config", "--workdir"))
  }
  mine = {a for a in run.arguments if a.startswith(("--config", "--workdir"))}
  return before == mine


def has_last_checkpoints(workdir: pathlib.Path) -> bool:
  """Whether those of the last step are there, by the configs of its stages."""
  below = ("config.json", "*/config.json", "members/*/config.json")
  for path in itertools.chain(*map(workdir.glob, below)):
    if (path.parent / "members").is_dir():
      continue  # they have them
    steps = json.loads(path.read_text(encoding="utf-8")).get("steps")
    last = path.parent / "checkpoints" / str(steps)
    if steps is not None and not last.is_dir():
      print(f"sweep: {path.parent} has no checkpoint of step {steps}")
      return False
  return True


def row_of(run: Run, job: Run, status: str, only_look: bool) -> dict[str, Any]:
  """A run's point, status and summary, if it is of these arguments.

  Args:
    run: The run, which may be a member.
    job: The run that was started for it.
    status: What came of that.
    only_look: Whether nothing was started.
  """
  path = run.workdir / "summary.json"
  found = {}
  if path.is_file() and not status.startswith("failed"):
    if not told_so(job):
      return run.point | {"status": OTHERWISE}
    found = json.loads(path.read_text(encoding="utf-8"))
    status = "finished" if only_look or status == "not finished" else status
  return run.point | {"status": status} | dict(_plain(found))


def _plain(summary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for name, value in summary.items():
    if isinstance(value, str | int | float) and name != "command":
      yield name, value


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
