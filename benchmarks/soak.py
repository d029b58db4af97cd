"""Whether a long RL run stays as it was: memory, programs, numbers.

    python -m benchmarks.soak --workdir=runs/soak --iterations=2000

Trains a tiny policy for a few steps, and runs RL with it at a learning rate of
0: nothing may change. The last line is a JSON object with what was measured;
the exit status is 1 if something is not as it should be:

  kl                  largest validation/kl, exactly 0
  memory_drift        mean resident memory of the last tenth of the run over
                      that of the tenth after the warm-up, less 1; at most 1 %
  compilations        programs compiled after the warm-up, 0
  sampler_difference  mean rollout/sampler_difference of the same tenths, the
                      second at most 10 % above the first

The warm-up is the first tenth of the iterations. Evaluations are few, since
each writes a checkpoint, of which TensorStore keeps a little memory: with
`--evaluations=20` that is seen too.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import process, results
from configs import rl, sft
from perl_jax import files, tasks

# A model of 50,000 parameters, and orders of coffee short enough for it.
SMALL = {
  "model.preset": "tiny",
  "model.scan_unroll": 1,
  "data.vocab_size": 400,
  "data.max_len": 136,
  "data.prompt_len": 88,
  "data.response_len": 12,
  "data.buckets": (),
  "data.options.size": 48,
  "data.options.validation_size": 8,
  "mesh.data": 1,
  "batch_size": 8,
  "eval.batch_size": 8,
  "eval.rows": 8,
  "log_every": 1,
}
MOST_DRIFT, MOST_GROWTH = 0.01, 0.1
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Recorder:
  """Resident memory by time, and when programs were compiled."""

  def __init__(self, seconds: float = 0.5):
    """Starts to record.

    Args:
      seconds: Time between two looks at the memory.
    """
    self.memory: list[tuple[float, int]] = []
    self.compiled: list[float] = []
    self._seconds, self._over = seconds, threading.Event()
    jax.monitoring.register_event_duration_secs_listener(self._heard)
    self._thread = threading.Thread(target=self._look, daemon=True)
    self._thread.start()

  def _heard(self, event: str, _: float, **__: Any) -> None:
    if event == _COMPILED:
      self.compiled.append(time.time())

  def _look(self) -> None:
    while not self._over.wait(self._seconds):
      self.memory.append((time.time(), process.status_bytes("VmRSS")))

  def stop(self) -> None:
    """Ends the recording."""
    self._over.set()
    self._thread.join()


def run(workdir: Path, iterations: int, evaluations: int = 2) -> dict[str, Any]:
  """Runs it in a new workdir; returns what was measured.

  Args:
    workdir: A new directory.
    iterations: Iterations of RL.
    evaluations: Evaluations in that time, each with a checkpoint.
  """
  steps = {"steps": 4, "eval_every": 4}
  tasks.run(configured(sft.get_config(), **steps), workdir / "sft")
  config = configured(
    rl.get_config(),
    **{
      "policy.init": str(workdir / "sft"),
      "tuning": "lora",
      "lora.rank": 2,
      "reward.fn": "perl_jax.data.coffee_bar:gold_reward",
      "optimizer.learning_rate": 0.0,
      "value.learning_rate": 0.0,
      "value.warmup_steps": 0,
      "steps": iterations,
      "eval_every": max(iterations // evaluations, 1),
    },
  )
  recorder, times = Recorder(), []
  watched = watching(workdir / "rl" / "metrics.jsonl", times)
  try:
    tasks.run(config, workdir / "rl")
  finally:
    recorder.stop()
    watched()
  return judged(workdir / "rl", recorder, times, iterations)


def configured(config: ConfigDict, **fields: Any) -> ConfigDict:
  """A config with a small model and other fields, by dotted name."""
  config.update_from_flattened_dict(SMALL | fields)
  return config


def watching(path: Path, times: list[tuple[float, int]]):
  """Notes when a file of lines has grown; returns what ends it."""
  over = threading.Event()

  def look():
    while not over.wait(0.2):
      if path.is_file():
        with path.open("rb") as file:
          times.append((time.time(), sum(1 for _ in file)))

  thread = threading.Thread(target=look, daemon=True)
  thread.start()

  def end():
    over.set()
    thread.join()

  return end


def judged(
  workdir: Path,
  recorder: Recorder,
  times: Sequence[tuple[float, int]],
  iterations: int,
) -> dict[str, Any]:
  """What was measured, and under "wrong" what is not as it should be.

  Args:
    workdir: Workdir of the RL run.
    recorder: The recorder of the whole run.
    times: When the metrics had how many lines.
    iterations: Iterations of the run.
  """
  rows = files.read_jsonl(workdir / "metrics.jsonl")
  tenth = max(iterations // 10, 1)
  lines = sum(1 for row in rows if row["step"] <= tenth)
  warm = min((at for at, count in times if count >= lines), default=0.0)
  memory = np.array([size for at, size in recorder.memory if at > warm], float)
  part = max(len(memory) // 9, 1)
  kl = [row["validation/kl"] for row in rows if "validation/kl" in row]
  name = "rollout/sampler_difference"
  differences = np.array([row[name] for row in rows if name in row])
  first = float(differences[tenth : 2 * tenth].mean())
  last = float(differences[-tenth:].mean())
  found: dict[str, Any] = {
    "iterations": iterations,
    "evaluations": len(kl),
    "kl": max(map(abs, kl)),
    "memory": float(memory[-part:].mean()),
    "memory_drift": float(memory[-part:].mean() / memory[:part].mean() - 1),
    "memory_spread": float(memory.max() / memory.min() - 1),
    "compilations": sum(at > warm for at in recorder.compiled),
    "sampler_difference": [first, last],
  }
  found["wrong"] = [
    name
    for name, wrong in (
      ("kl", found["kl"] != 0.0),
      ("memory_drift", found["memory_drift"] > MOST_DRIFT),
      ("compilations", found["compilations"] > 0),
      ("sampler_difference", last > (1 + MOST_GROWTH) * first),
    )
    if wrong
  ]
  return found


def main() -> None:
  """Runs it and prints what was measured."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--iterations", type=int, default=2000)
  parser.add_argument("--evaluations", type=int, default=2)
  given = parser.parse_args()
  measured = run(given.workdir, given.iterations, given.evaluations)
  found = results.machine() | measured
  print(json.dumps(found))
  sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
  main()
