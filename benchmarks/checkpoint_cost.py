"""What a checkpoint costs: seconds and bytes by stage, as a share of a step.

    python -m benchmarks.checkpoint_cost --workdir=runs/checkpoint_cost

Every stage trains twice with its own config: without a checkpoint but the last,
and with one every few steps. A line of JSON for each stage says

  bytes       files of a checkpoint, the largest
  held        seconds that the loop waited in a save: the copy to the host
  written     seconds from the start of a save until the checkpoint was whole,
              while the next steps ran
  step        seconds of a step of the run without checkpoints
  step_beside seconds of a step of the run with them, saving itself left out
  share       held / step

All are medians, and times leave the first save out. `rl` and `dpo` start from
the sft of the same workdir.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import results
from configs import dpo, reward, rl, sft
from perl_jax import checkpoint, disk, files, tasks

STAGES = {"sft": sft, "reward": reward, "rl": rl, "dpo": dpo}
# Orbax writes it last of all.
_LAST = "_CHECKPOINT_METADATA"


class Save:
  """When a save of a step began, and how long the loop waited in it."""

  def __init__(self, step: int, began: float, held: float):
    self.step, self.began, self.held = step, began, held


class Timed(checkpoint.Checkpointer):
  """Notes how long each save holds the loop up."""

  saves: list[Save] = []  # noqa: RUF012 (of the run that is going on)

  def save(self, step: int, *args: Any, **options: Any) -> None:
    """Saves, and notes it."""
    began, clock = time.time(), time.perf_counter()
    super().save(step, *args, **options)
    self.saves.append(Save(step, began, time.perf_counter() - clock))


def run(
  workdir: Path,
  stage: str,
  *,
  steps: int,
  every: int,
  fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Measures a stage; its sft, if it starts from one, is `workdir`/sft.

  Args:
    workdir: Where runs are written.
    stage: A key of `STAGES`.
    steps: Steps of a run.
    every: Steps between two checkpoints.
    fields: Further values of its config, by dotted name.
  """
  times = {}
  Timed.saves = []
  for name, saves in (("without", 0), ("with", every)):
    config = configured(workdir, stage, steps, saves, fields or {})
    before, checkpoint.Checkpointer = checkpoint.Checkpointer, Timed
    try:
      tasks.run(config, workdir / f"{stage}-{name}")
    finally:
      checkpoint.Checkpointer = before
    if not saves:
      Timed.saves = []
    rows = files.read_jsonl(workdir / f"{stage}-{name}" / "metrics.jsonl")
    found = [row["seconds/step"] for row in rows if "seconds/step" in row]
    times[name] = statistics.median(found[1:])
  return {"stage": stage} | summary(
    Timed.saves, workdir / f"{stage}-with" / checkpoint.DIRECTORY, times
  )


def configured(
  workdir: Path, stage: str, steps: int, every: int, fields: Mapping[str, Any]
) -> ConfigDict:
  """The config of a run; with `every` 0, only its last state is saved."""
  config = STAGES[stage].get_config()
  own = {
    "steps": steps,
    "eval_every": steps,
    "log_every": 1,
    "save.every_steps": every,
    "save.every_seconds": 0.0,
    "save.keep": steps,
  }
  if stage in ("rl", "dpo"):
    own["policy.init"] = str(workdir / "sft-without")
  if stage == "reward":
    own["reward.init"] = str(workdir / "sft-without")
  if stage == "rl":
    own["reward.fn"] = "perl_jax.data.coffee_bar:gold_reward"
  config.update_from_flattened_dict(own | dict(fields))
  return config


def summary(
  saves: Sequence[Save], directory: Path, times: Mapping[str, float]
) -> dict[str, Any]:
  """What the saves of a run cost; see the module.

  Args:
    saves: All of them; the first is left out, and the last, which is waited
      for.
    directory: Where its checkpoints are.
    times: Median seconds of a step, by "without" and "with".
  """
  counted = saves[1:-1] or saves
  written = [
    (directory / str(save.step) / _LAST).stat().st_mtime - save.began
    for save in counted
  ]
  held = statistics.median(save.held for save in counted)
  return {
    "saves": len(counted),
    "bytes": max(disk.size(directory / str(save.step)) for save in saves),
    "held": held,
    "written": statistics.median(written),
    "step": times["without"],
    "step_beside": times["with"],
    "share": held / times["without"],
  }


def main() -> None:
  """Measures all stages and prints a line for each."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--steps", type=int, default=40)
  parser.add_argument("--every", type=int, default=5)
  given = parser.parse_args()
  print(json.dumps(results.machine()))
  for stage in STAGES:
    found = run(given.workdir, stage, steps=given.steps, every=given.every)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
  main()
