"""Seconds to the first step on a real model, on a first and a second start.

    python -m benchmarks.first_step --data=DIR --workdir=runs/first_step

Runs `configs/smollm2.py` twice, as a user would, for one step of the reward
model and one of RL; DIR holds the pairs of `hh_rlhf` (see the config). The
first start finds an empty cache of compiled programs, the second one finds what
the first has left. A line of JSON for each start and stage says

  seconds   from the start of the process, or for RL of the stage, until the
            line of the first step is written; the evaluation before it, of 16
            rows, is in it
  compiling seconds of those that went into compiling, or into reading the
            cache
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import alike, results
from perl_jax import files

ROOT = Path(__file__).parents[1]
STAGES = ("reward", "rl")
COMPILED = ("seconds/compile", "seconds/evaluate_compile")
FIELDS = {
  f"{stage}.{field}": value
  for stage in STAGES
  for field, value in {"steps": 1, "log_every": 1, "eval.rows": 16}.items()
} | {"evaluate.eval.rows": 16}


def main() -> None:
  """Runs it twice, and prints four lines."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", type=Path, required=True)
  parser.add_argument("--workdir", type=Path, required=True)
  given = parser.parse_args()
  print(json.dumps(results.machine()), flush=True)
  cache = given.workdir / "compiled"
  shutil.rmtree(cache, ignore_errors=True)
  for start in ("first", "second"):
    workdir = given.workdir / start
    shutil.rmtree(workdir, ignore_errors=True)
    for found in run(workdir, cache, given.data):
      print(json.dumps({"start": start} | found), flush=True)


def run(workdir: Path, cache: Path, data: Path) -> list[dict[str, object]]:
  """Runs until RL has made a step, and returns a row for each stage.

  Raises:
    RuntimeError: The run has ended before.
  """
  command = [
    *(sys.executable, "-m", "perl_jax.main"),
    f"--config={ROOT}/configs/smollm2.py",
    f"--config.data.dir={data}",
    *(f"--config.{field}={value}" for field, value in FIELDS.items()),
    f"--compilation_cache={cache}",
    f"--workdir={workdir}",
  ]
  began, rows = time.time(), []
  log = workdir.with_suffix(".log")
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open("w") as file:
    process = subprocess.Popen(command, stdout=file, stderr=file)
  try:
    for stage in STAGES:
      while not alike.made(workdir / stage):
        if process.poll() is not None:
          raise RuntimeError(f"the run has ended: {log.read_text()[-2000:]}")
        time.sleep(0.1)
      reached = time.time()
      if stage != STAGES[0]:
        began = (workdir / stage / "config.json").stat().st_mtime
      lines = files.read_jsonl(workdir / stage / "metrics.jsonl")
      compiling = sum(
        line.get(name, 0.0) for line in lines for name in COMPILED
      )
      row = {"stage": stage, "seconds": round(reached - began, 1)}
      rows.append(row | {"compiling": round(compiling, 1)})
  finally:
    process.terminate()
    process.wait()
  return rows


if __name__ == "__main__":
  main()
