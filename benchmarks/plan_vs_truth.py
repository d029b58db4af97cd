"""Planned peak memory beside the memory that the same program takes.

  python -m benchmarks.plan_vs_truth
  python -m benchmarks.plan_vs_truth --model=llama_8b --dtype=bfloat16

Each program of a reward step and of an RL iteration is planned for one device
of this machine, as the task `plan` does it. Then it runs in a process of its
own, with arrays of zeros as arguments, and the peak memory is read: on a GPU
from the allocator, on a CPU as the growth of the process's resident set from
before the arguments are made (VmHWM). On a CPU that counts more than XLA's
buffers: matrices that a product packs, and the stacks of threads.
"""

import argparse
import gc
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import process, results
from configs import plan as plan_config
from perl_jax import files, sharding
from perl_jax.planning import estimate
from perl_jax.reporting import numbers
from perl_jax.tasks import plan
from perl_jax.tasks.training import compiled

STAGES = ("reward", "rl")


def config_of(given: argparse.Namespace, stage: str) -> Any:
  """The config of a plan of one stage on one device."""
  config = plan_config.get_config()
  config.model, config.vocab_size = given.model, given.vocab
  config.compute.dtype = config.base_dtype = given.dtype
  config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
  config[stage].batch_size = given.batch
  config[stage].data.max_len = given.length
  config[stage].data.prompt_len = given.length - given.length // 4
  config[stage].data.response_len = given.length // 4
  return config.lock()


def made_programs(given: argparse.Namespace, stage: str):
  """The mesh, and the programs of a stage."""
  config = config_of(given, stage)
  mesh = sharding.make_mesh(**config.mesh.to_dict())
  model = plan.model_of(config, [stage])
  made = plan.stage_config(config, stage, given.tuning)
  return mesh, plan.make_stage(made, model, mesh).programs()


def run_one(given: argparse.Namespace) -> dict[str, int]:
  """Plans and runs one program; returns bytes "planned" and "taken"."""
  mesh, found = made_programs(given, given.stage)
  (program,) = [p for p in found if p.name == given.program]
  with jax.set_mesh(mesh):
    jitted = program.function.jitted(*program.args)
    executable = jitted.lower(*program.args).compile()
    planned = estimate.peak_bytes(executable.memory_analysis())
    device = mesh.devices.flat[0]
    on_cpu = device.memory_stats() is None
    gc.collect()
    if on_cpu:
      compiled.return_freed_memory()
      before = process.status_bytes("VmRSS")
      # Forgets the peak of the compilation.
      pathlib.Path("/proc/self/clear_refs").write_text("5")
    args = jax.tree.map(_made, program.args)
    jax.block_until_ready(args)
    jax.block_until_ready(executable(*args))
    if on_cpu:
      taken = process.status_bytes("VmHWM") - before
    else:
      taken = device.memory_stats()["peak_bytes_in_use"]
  return {"planned": planned, "taken": int(taken)}


def _made(x):
  """The array of an abstract one, of zeros; lengths and masks are 1."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.key(0)
  value = jnp.asarray(x.ndim == 1, x.dtype)
  return jax.jit(lambda: jnp.full(x.shape, value), out_shardings=x.sharding)()


def measure(given: argparse.Namespace) -> dict[str, dict[str, int]]:
  """Calls `run_one` for each program, in a process of its own."""
  found = {}
  for stage in STAGES:
    for program in made_programs(given, stage)[1]:
      command = [
        sys.executable, "-m", "benchmarks.plan_vs_truth", *sys.argv[1:],
        f"--stage={stage}", f"--program={program.name}",
      ]  # fmt: skip
      name = f"{stage}: {program.name}"
      found[name] = process.last_json(command)
      print(name, found[name], flush=True)
  return found


def table(found: dict[str, dict[str, int]]) -> str:
  """A Markdown table, a line for each program."""
  lines = [
    "| program | planned | taken | planned / taken |",
    "|---|---|---|---|",
  ]
  for name, row in found.items():
    lines.append(
      f"| {name} | {numbers.size(row['planned'])}"
      f" | {numbers.size(row['taken'])}"
      f" | {row['planned'] / row['taken']:.3f} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Plans, runs and prints; with --json it writes a file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="base", help="a preset")
  parser.add_argument("--vocab", type=int, default=32_000)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--tuning", default="lora")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--json", type=pathlib.Path, default=None)
  parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
  parser.add_argument("--program", default="", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.program:
    print(json.dumps(run_one(given)))
    return
  found = measure(given)
  machine = results.machine()
  print(results.in_line(machine))
  print(table(found))
  if given.json:
    files.write_json(given.json, {"machine": machine, "programs": found})


if __name__ == "__main__":
  main()
