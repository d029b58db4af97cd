"""Memory of an RL iteration, beside sampling alone and four full models.

  python -m benchmarks.rl_memory
  python -m benchmarks.rl_memory --model=gemma_2b --topology=v5e:4x4 \
      --batch=64 --prompt_len=1024 --response_len=512 --parts=4

Nothing is run or allocated. The programs that training runs are compiled from
abstract arrays (jax.ShapeDtypeStruct), for this machine's devices or, with
--topology and the package libtpu, ahead of time for TPUs that are not here.
Three set-ups:

  alone     a policy that is sampled from, and nothing else
  PERL      policy, anchor, reward and value as adapters on one frozen base
  standard  four models; policy and value trained in full

The standard set-up's trained weights are float32 with float32 Adam moments; its
anchor and reward model are in the compute dtype, as PERL's base is.

Bytes are per device, from the compiler. What is held is in memory while any
program runs; the peak is that of the program that needs most. Where the chip is
known, the predicted time is printed too; see `perl_jax/planning/estimate.py`.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import results
from configs import plan as plan_config
from perl_jax import files, roles, sharding
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.reporting import numbers
from perl_jax.tasks import plan
from perl_jax.tasks.dry_run.programs import Program, StagePrograms
from perl_jax.tasks.rollouts import engine
from perl_jax.tasks.settings import rl as rl_settings

SETUPS = ("alone", "PERL", "standard")


def config_of(given: argparse.Namespace) -> ConfigDict:
  """The config of the plan of an RL stage, from the flags."""
  config = plan_config.get_config()
  config.model, config.plan.topology = given.model, given.topology
  config.vocab_size = given.vocab
  config.compute.dtype = config.base_dtype = given.dtype
  config.mesh = {"data": given.data, "fsdp": -1, "tensor": given.tensor}
  config.rl.batch_size = given.batch
  config.rl.microbatches = config.rl.score_microbatches = given.parts
  config.rl.data.prompt_len = given.prompt_len
  config.rl.data.response_len = given.response_len
  return config.lock()


def alone(
  perl: StagePrograms, model: ModelConfig, config: ConfigDict
) -> StagePrograms:
  """Sampling from a model without adapters, with the settings of PERL."""
  sample, base = perl.programs()[0], perl.held["base"]
  spec = rl_settings.read(config).rollout
  sampler = engine.compiled_sampler(roles.Backbone(model, LoraSpec()), spec)
  args = base, {}, *sample.args[2:]

  def made():
    return [Program("sample", sampler, args, ("policy",))]

  return dataclasses.replace(
    perl, name="alone", held={"policy": base}, make_programs=made
  )


def standard(full: StagePrograms, dtype: str) -> StagePrograms:
  """Full tuning, with anchor and reward model in the compute dtype."""

  def in_dtype(tree):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), tree
    )

  frozen = {name: in_dtype(full.held[name]) for name in ("anchor", "reward")}

  def made():
    sample, score, *rest = full.programs()
    args = score.args[0] | frozen, *score.args[1:]
    return [sample, dataclasses.replace(score, args=args), *rest]

  held = dict(full.held) | frozen
  return dataclasses.replace(
    full, name="standard", held=held, make_programs=made
  )


def measure(
  config: ConfigDict, mesh: Mesh, setups: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
  """Plans each set-up; see `plan.plan_made`."""
  model = plan.model_of(config, ["rl"])
  configs = {t: plan.stage_config(config, "rl", t) for t in ("lora", "full")}

  def stage(tuning):
    return plan.make_stage(configs[tuning], model, mesh)

  make = {
    "alone": lambda: alone(stage("lora"), model, configs["lora"]),
    "PERL": lambda: stage("lora"),
    "standard": lambda: standard(stage("full"), config.compute.dtype),
  }
  return {name: plan.plan_made(make[name]()) for name in setups}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """A Markdown table: a line for each tree and program, a column a set-up."""
  lines = [
    f"| on a device | {' | '.join(found)} |",
    "|---" * (len(found) + 1) + "|",
  ]

  def line(title, values):
    cells = ["" if v is None else numbers.size(v) for v in values]
    lines.append(f"| {title} | {' | '.join(cells)} |")

  columns = list(found.values())
  for name in dict.fromkeys(k for f in columns for k in f["held"]):
    line(f"held: {name}", [f["held"].get(name) for f in columns])
  line("**held**", [sum(f["held"].values()) for f in columns])
  for name in dict.fromkeys(k for f in columns for k in f["programs"]):
    peaks = [f["programs"].get(name, {}).get("peak_bytes") for f in columns]
    line(f"{name}, with what is held", peaks)
  line("**peak**", [f["peak_bytes"] for f in columns])
  if all(f["seconds"] for f in columns):
    cells = " | ".join(numbers.duration(f["seconds"]) for f in columns)
    lines.append(f"| predicted time of its programs | {cells} |")
  for name, ratio in ratios(found).items():
    lines.append(f"\n{name}: {ratio:.3f}")
  return "\n".join(lines)


def ratios(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Peak of PERL over the peak of each other set-up."""
  if "PERL" not in found:
    return {}
  mine = found["PERL"]["peak_bytes"]
  return {
    f"PERL / {name}": mine / f["peak_bytes"]
    for name, f in found.items()
    if name != "PERL"
  }


def flags() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="base", help="a preset")
  parser.add_argument("--vocab", type=int, default=0, help="0: the preset's")
  parser.add_argument("--topology", default="", help="such as v5e:4x4")
  parser.add_argument("--dtype", default="", help="computation and frozen base")
  for name, value in (
    ("batch", 8), ("prompt_len", 128), ("response_len", 64), ("parts", 8),
    ("data", 1), ("tensor", 1),
  ):  # fmt: skip
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--setups", nargs="+", default=SETUPS, choices=SETUPS)
  parser.add_argument("--json", type=Path, default=None, help="a file to write")
  given = parser.parse_args()
  given.dtype = given.dtype or ("bfloat16" if given.topology else "float32")
  if given.model == "base" and not given.vocab:
    given.vocab = 32_000
  return given


def main() -> None:
  """Compiles and prints; with --json it writes a file."""
  given = flags()
  config = config_of(given)
  mesh = sharding.make_mesh(
    **config.mesh.to_dict(), devices=plan.devices_of(given.topology)
  )
  kind = mesh.devices.flat[0].device_kind
  settings = {k: v for k, v in vars(given).items() if k != "json"}
  print(f"{mesh.size} x {kind}, JAX {jax.__version__}, {settings}", flush=True)
  found = measure(config, mesh, tuple(given.setups))
  print("\n" + table(found))
  if given.json:
    given.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"settings": settings, "machine": results.machine()}
    files.write_json(given.json, result | {"setups": found})


if __name__ == "__main__":
  main()
