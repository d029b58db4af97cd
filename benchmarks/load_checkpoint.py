"""How much host memory and time it takes to read a checkpoint.

    python -m benchmarks.load_checkpoint --directory=runs/random_1gb

Makes a random Llama checkpoint of about 1 GB (bfloat16, several shards) unless
it is there. Two processes read it, one after the other: with
`perl_jax.interop`, and with `transformers.from_pretrained` where PyTorch is
installed. "Peak" is the growth of the process's resident set from before the
call to its maximum (VmHWM, so that mapped files count); "resident" is the bytes
of the parameters.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import process

SHAPE = dict(
  vocab_size=32_000,
  num_layers=24,
  width=1024,
  mlp_width=4096,
  num_heads=16,
  num_kv_heads=16,
  head_dim=64,
  max_len=2048,
  norm_eps=1e-5,
  tied_head=False,
)


def make(directory: Path, layers: int, shard_bytes: int) -> None:
  """Writes a random checkpoint of that many layers."""
  import ml_dtypes

  from perl_jax.interop import hf_config_out, hf_weights
  from perl_jax.interop import leaves as leaves_lib
  from perl_jax.models.config import ModelConfig

  config = ModelConfig(**SHAPE | {"num_layers": layers})
  rng = np.random.default_rng(0)
  leaves = {}
  for path, shape in leaves_lib.base_shapes(config).items():
    drawn = rng.standard_normal(shape, np.float32)
    leaves[path] = (0.02 * drawn).astype(ml_dtypes.bfloat16)
  directory.mkdir(parents=True)
  hf_weights.save_base(
    directory, config, leaves, dtype="bfloat16", shard_bytes=shard_bytes
  )
  found = hf_config_out.hf_config(config)
  found.dtype = "bfloat16"
  (directory / "config.json").write_text(json.dumps(found.to_dict()))


def measure_ours(directory: Path) -> dict[str, float]:
  """Reads the checkpoint with perl_jax; returns bytes and seconds."""
  import jax

  from perl_jax import params, sharding
  from perl_jax.interop import hf_checkpoint, hf_config
  from perl_jax.interop.storage import Storage

  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  jax.block_until_ready(jax.numpy.zeros(8))
  hf_config.load_hf_config(directory)  # imports transformers
  before, started = process.status_bytes("VmRSS"), time.perf_counter()
  storage = Storage("bfloat16")
  found = hf_checkpoint.load(directory, mesh=mesh, storage=storage)
  jax.block_until_ready(found.frozen)
  seconds = time.perf_counter() - started
  resident = params.nbytes(found.frozen)
  return {
    "resident": resident,
    "peak": process.status_bytes("VmHWM") - before,
    "seconds": seconds,
  }


def measure_transformers(directory: Path) -> dict[str, float]:
  """Reads the checkpoint with transformers; returns bytes and seconds."""
  import torch
  import transformers

  torch.zeros(8)
  before, started = process.status_bytes("VmRSS"), time.perf_counter()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.bfloat16
  )
  # Weights are mapped lazily: touch every byte, as reading would.
  total = sum(float(p.detach().float().sum()) for p in model.parameters())
  assert np.isfinite(total)
  seconds = time.perf_counter() - started
  resident = sum(p.numel() * p.element_size() for p in model.parameters())
  return {
    "resident": resident,
    "peak": process.status_bytes("VmHWM") - before,
    "seconds": seconds,
  }


MEASURES = {"perl_jax": measure_ours, "transformers": measure_transformers}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
  """Makes the checkpoint, measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--directory", required=True, type=Path)
  parser.add_argument("--layers", type=int, default=SHAPE["num_layers"])
  parser.add_argument("--shard_bytes", type=int, default=300_000_000)
  parser.add_argument("--measure", choices=sorted(MEASURES), default=None)
  parser.add_argument("--python", default=sys.executable)
  flags = parser.parse_args(argv)
  if flags.measure:
    found = MEASURES[flags.measure](flags.directory)
    print(json.dumps(found))
    return {flags.measure: found}
  if not flags.directory.exists():
    make(flags.directory, flags.layers, flags.shard_bytes)
  results = {}
  for name in MEASURES:
    command = [flags.python, "-m", "benchmarks.load_checkpoint"]
    command += [f"--directory={flags.directory}", f"--measure={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      print(f"{name}: not measured ({done.stderr.strip().splitlines()[-1]})")
      continue
    found = json.loads(done.stdout.strip().splitlines()[-1])
    results[name] = found
    print(
      f"{name}: resident {found['resident'] / 1e6:.0f} MB, peak"
      f" {found['peak'] / found['resident']:.2f} x resident,"
      f" {found['seconds']:.2f} s"
    )
  return results


if __name__ == "__main__":
  main()
