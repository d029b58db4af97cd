"""The efficiency tables of the paper from the compiler: LoRA and full tuning.

  python -m benchmarks.efficiency --workdir=runs/efficiency
  python -m benchmarks.efficiency --workdir=runs/efficiency --weak
  python -m benchmarks.efficiency --workdir=runs/efficiency --layouts

Needs libtpu, and no TPU. Each row is the task `plan` for a model and a slice:
the reward step (pairs of 1,024 tokens) and an RL iteration (1,024 + 128), with
LoRA of rank 8 on attention and with full tuning. A chip has four rows of a
batch, in microbatches of one, and whole layers are rematerialised. Bytes are
the compiler's; seconds are predicted (see `perl_jax/planning/estimate.py`).

With --weak: weak scaling, the reward step of one model on growing slices with a
batch that grows as they do. With --layouts: a rollout (1,024 + 512) that
decodes in the layout of training, beside one that reshards the base for
decoding (`config.rollouts.layout`).

A row that was planned before is read from its workdir.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import results
from configs import plan as plan_config
from perl_jax import files, sharding
from perl_jax.reporting import numbers
from perl_jax.tasks import plan

ROWS_PER_CHIP = 4

# Memory of LoRA over full tuning, for one model each: Sidahmed et al. 2024,
# arXiv:2403.10704, tables 1 and 3.
PAPER = {"reward": "43 to 56 %", "rl": "73 to 80 %"}
SLICES = (
  ("gemma_2b", "v5e:4x4"),
  ("llama_8b", "v5e:4x4"),
  ("llama_70b", "v5p:4x4x4"),
  ("gemma_2b", "v6e:2x4"),
  ("llama_8b", "v6e:4x4"),
  ("llama_8b", "v5p:2x2x4"),
)
ROLLOUTS = (("gemma_2b", 64), ("llama_8b", 32))  # prompts on 16 chips
WEAK = tuple(("llama_8b", f"v5e:{s}") for s in ("2x2", "4x4", "8x8", "16x16"))


def chips(topology: str) -> int:
  """Number of chips in a slice; "v5p:2x2x4" has 16."""
  return math.prod(int(n) for n in topology.split(":")[1].split("x"))


def config_of(model: str, topology: str, *, stages: str, full: bool) -> Any:
  """The config of the plan of one row.

  Args:
    model: Preset.
    topology: Slice, such as "v5e:4x4".
    stages: Names of stages, with commas between them.
    full: Whether full tuning is planned too.
  """
  config = plan_config.get_config()
  config.model, config.plan.topology = model, topology
  config.plan.stages, config.plan.full = stages, full
  config.plan.suggest = False
  for name in stages.split(","):
    config[name].batch_size = ROWS_PER_CHIP * chips(topology)
    config[name].eval.batch_size = config[name].batch_size
    config[name].microbatches = ROWS_PER_CHIP
  config.rl.score_microbatches = ROWS_PER_CHIP
  return config.lock()


def planned(config: Any, workdir: Path) -> dict[str, Any]:
  """Returns the plan of a row, from its workdir if it is there."""
  path = workdir / plan.FILE
  if not (workdir / "done").exists():
    plan.run(config, workdir)
    (workdir / "done").touch()
  return json.loads(path.read_text())


def table(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[str]:
  """A Markdown table, a line for each stage of each row."""
  yield (
    "| model | slice | stage | LoRA, GiB a device | full | LoRA / full | paper"
    " | LoRA, s a step | full | LoRA / full |"
  )
  yield "|---|---|---|---|---|---|---|---|---|---|"
  for (model, topology), found in rows.items():
    for name, by_tuning in found["stages"].items():
      lora, full = by_tuning["lora"], by_tuning["full"]
      memory = [stage["peak_bytes"] / 2**30 for stage in (lora, full)]
      line = (
        f"| {model} | {topology} | {name} | {memory[0]:.2f} | {memory[1]:.2f}"
        f" | {memory[0] / memory[1]:.1%} | {PAPER[name]}"
      )
      if lora["seconds"] and full["seconds"]:
        seconds = lora["seconds"], full["seconds"]
        line += (
          f" | {seconds[0]:.2f} | {seconds[1]:.2f}"
          f" | {seconds[0] / seconds[1]:.1%} |"
        )
      else:
        line += " | | does not fit | |"
      yield line


def weak_table(
  rows: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Iterator[str]:
  """A Markdown table of weak scaling, a line for each slice."""
  yield (
    "| slice | pairs | GiB a device | s a step, predicted | compute | memory"
    " | network | bound by | efficiency |"
  )
  yield "|---|---|---|---|---|---|---|---|---|"
  first = None
  for (_, topology), found in rows.items():
    stage = found["stages"]["reward"]["lora"]
    times = stage["programs"]["learn"]["times"]
    first = first or times["step"]
    bounds = " | ".join(
      numbers.duration(times[name]) for name in ("compute", "memory", "network")
    )
    yield (
      f"| {topology} | {stage['batch_size']} |"
      f" {stage['peak_bytes'] / 2**30:.2f} | {times['step']:.3f} | {bounds}"
      f" | {times['bound']} | {first / times['step']:.0%} |"
    )


def rollouts(workdir: Path) -> dict[str, dict[str, Any]]:
  """Plans the sampling program of each model in each layout."""
  found = {}
  for model, batch in ROLLOUTS:
    for layout in ("train", "decode"):
      name = f"{model} {layout}"
      path = workdir / f"rollout_{model}_{layout}.json"
      if not path.exists():
        files.write_json(path, _rollout(model, batch, layout))
      found[name] = json.loads(path.read_text())
      print(f"{name}: planned", flush=True)
  return found


def _rollout(model: str, batch: int, layout: str) -> dict[str, Any]:
  config = plan_config.get_config()
  config.model, config.plan.topology = model, "v5e:4x4"
  config.rl.batch_size, config.rl.data.response_len = batch, 512
  config.rl.rollouts.layout = layout
  mesh = sharding.make_mesh(
    **config.mesh.to_dict(), devices=plan.devices_of(config.plan.topology)
  )
  made = plan.make_stage(
    plan.stage_config(config, "rl", "lora"), plan.model_of(config, ["rl"]), mesh
  )
  sample = made.programs()[:1]
  return plan.plan_made(dataclasses.replace(made, make_programs=lambda: sample))


def rollout_table(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  """A Markdown table, a line for each model and layout."""
  yield (
    "| model, layout | GiB a device | sent by a device | compute | memory"
    " | network | s a rollout, predicted |"
  )
  yield "|---|---|---|---|---|---|---|"
  for name, stage in found.items():
    program = stage["programs"]["sample"]
    times = program["times"]
    bounds = " | ".join(
      numbers.duration(times[kind]) for kind in ("compute", "memory", "network")
    )
    sent = sum(program["cost"]["collective_bytes"].values())
    yield (
      f"| {name} | {stage['peak_bytes'] / 2**30:.2f} | {numbers.size(sent)}"
      f" | {bounds} | {times['step']:.2f} |"
    )


def main() -> None:
  """Plans and prints; writes efficiency.json or weak.json."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--weak", action="store_true")
  parser.add_argument("--rows", type=int, default=None, help="number of rows")
  parser.add_argument("--layouts", action="store_true")
  given = parser.parse_args()
  if given.layouts:
    found = rollouts(given.workdir)
    print("\n".join(rollout_table(found)))
    return
  slices = (WEAK if given.weak else SLICES)[: given.rows]
  rows = {}
  for model, topology in slices:
    kind = "weak" if given.weak else "table"
    name = f"{kind}_{model}_{topology.replace(':', '_')}"
    config = config_of(
      model,
      topology,
      stages="reward" if given.weak else "reward,rl",
      full=not given.weak,
    )
    rows[model, topology] = planned(config, given.workdir / name)
    print(f"{name}: planned", flush=True)
  lines = (weak_table if given.weak else table)(rows)
  print("\n".join(lines))
  files.write_json(
    given.workdir / ("weak.json" if given.weak else "efficiency.json"),
    {
      "machine": results.machine(),
      "rows": {" ".join(key): found for key, found in rows.items()},
    },
  )


if __name__ == "__main__":
  main()
