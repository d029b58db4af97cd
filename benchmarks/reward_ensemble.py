"""What an ensemble of reward models costs to train, against one.

  python -m benchmarks.reward_ensemble
  python -m benchmarks.reward_ensemble --members=8 --steps=20

The training step of configs/reward.py on pairs of `coffee_bar`, preset small:
one model, and `--members` models in one step, each on `--share` of the rows.
Both take turns step by step, each first in every other turn; the same batches
go to both, from the host. Weights are random; time and memory do not depend on
them. Results: README.md.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import results, stages
from configs import reward as reward_config
from perl_jax import sharding
from perl_jax.tasks.settings import defaults
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.training import batching, begin, inputs


class Arm:
  """The training step of a number of reward models, from batches on the host.

  Attributes:
    stage: State and compiled step.
    batches: Endless batches on the host, of the same pairs for all arms.
  """

  def __init__(self, config, start, tokenization, mesh, members: int):
    config = config.copy_and_resolve_references()
    config.ensemble = members
    reward_settings.check(config, mesh)
    packing = batching.Packing.of(
      start.config, targets=False, own_rows=reward_settings.own_rows(config)
    )
    data = inputs.read(config, tokenization, "preferences", packing=packing)
    self.stage = stages.RewardStep(config, start, mesh, data.max_targets)
    self.batches = data.train
    self._mesh = mesh

  def run(self, batch, number: int) -> float:
    """Does one step on a batch on the host; returns its seconds."""
    jax.block_until_ready(self.stage.state)
    started = time.perf_counter()
    self.stage.run(sharding.place_batch(self._mesh, batch), number)
    return time.perf_counter() - started


def run(
  members: int, count: int, microbatches: int, share: float
) -> dict[int, dict]:
  """Measures one model and an ensemble.

  Args:
    members: Models of the ensemble.
    count: Measured steps.
    microbatches: Microbatches of a step; 0 is the config's number.
    share: Share of the rows that each model of the ensemble trains on.

  Returns:
    For 1 and `members`: the number of parameters "trained", "seconds" of each
    step, "seconds_compiling", and the compiler's "peak_bytes".
  """
  config = reward_config.get_config("coffee_bar")
  config.member_share = share
  config.microbatches = microbatches or config.microbatches
  config = defaults.from_scratch(config)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with tempfile.TemporaryDirectory() as workdir, jax.set_mesh(mesh):
    start, tokenization = begin.start(
      config, "reward", Path(workdir), "preferences", mesh
    )
    arms = {n: Arm(config, start, tokenization, mesh, n) for n in (1, members)}
    batches = {
      n: [next(arm.batches) for _ in range(count)] for n, arm in arms.items()
    }
    seconds: dict[int, list[float]] = {n: [] for n in arms}
    for n, arm in arms.items():
      for batch in batches[n]:  # a length is compiled when it is first seen
        arm.run(batch, 0)
    for number in range(count):
      for n in list(arms)[:: -1 if number % 2 else 1]:
        batch = batches[n][number]
        seconds[n].append(arms[n].run(batch, number + 1))
  return {
    n: {
      "trained": int(arm.stage.summary["trainable_parameters"]),
      "seconds": seconds[n],
      "seconds_compiling": arm.stage.program.compile_seconds,
      "peak_bytes": arm.stage.program.peak_bytes,
    }
    for n, arm in arms.items()
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--members", type=int, default=4)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--microbatches", type=int, default=0)
  parser.add_argument("--share", type=float, default=0.5)
  given = parser.parse_args()
  found = run(given.members, given.steps, given.microbatches, given.share)
  print(results.in_line(results.machine()))
  print("| models | trained | seconds a step | compiling, s | peak, MiB |")
  print("| --- | --- | --- | --- | --- |")
  for n, row in found.items():
    times = row["seconds"]
    spread = results.spread(statistics.median(times), times)
    print(
      f"| {n} | {row['trained']} | {spread} | {row['seconds_compiling']:.1f}"
      f" | {results.mebibytes(row['peak_bytes'])} |"
    )
  one, many = (row["seconds"] for row in found.values())
  ratios = [b / a for a, b in zip(one, many, strict=True)]
  print(
    f"{given.members} models take {statistics.median(ratios):.2f} times one"
    f" ({min(ratios):.2f} to {max(ratios):.2f}; median over the same batches)."
  )


if __name__ == "__main__":
  main()
