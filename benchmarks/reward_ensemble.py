"""What an ensemble of reward models costs to train, against one.

  python -m benchmarks.reward_ensemble
  python -m benchmarks.reward_ensemble --members=8 --steps=20

The reward step of configs/reward.py on real pairs of `coffee_bar`, preset
small: one model, and `--members` models in one step, each on `--share` of the
rows. Both take turns step by step, each first in every other turn; the same
batches go to both, from the host. Weights are random, and what is measured does
not depend on them. Results: README.md.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import lora_vs_full
from configs import reward as reward_config
from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import begin, inputs
from perl_jax.tasks.training.compiled import Compiled


class Arm:
  """The learning step of so many reward models, as the task builds it."""

  def __init__(self, config, start, mesh, members: int, data):
    config = config.copy_and_resolve_references()
    config.ensemble = members
    reward_settings.check(config, mesh)
    lora = shared.lora_spec(config)
    optimizer = shared.make_optimizer(config)
    trainable, frozen = trainable_lib.ensemble_of(
      start,
      members=members,
      lora=lora,
      tuning="lora",
      seed=config.seed,
      head=config.head,
    )
    backbone = roles.Backbone(start.config, lora)
    loss = steps.pairwise_loss(backbone, max_response=data.max_targets)
    init = steps.init_state if members == 1 else steps.init_ensemble
    state = init(sharding.place(mesh, trainable), optimizer)
    self._state = sharding.place(mesh, state)
    self._frozen = sharding.place(mesh, frozen)
    self._mesh = mesh
    self._own_rows = reward_settings.own_rows(config, len(data.train_rows))
    self.step = Compiled(
      reward_settings.make_step(config, loss, optimizer),
      name=f"{members} models",
      donate=(0,),
    )
    self.trained = params_lib.count(trainable)

  def run(self, batch, number: int) -> float:
    """Seconds of one step, from the batch on the host."""
    key = jax.random.fold_in(jax.random.key(0), number)
    jax.block_until_ready((self._state, key))
    started = time.perf_counter()
    if self._own_rows is not None:
      batch = self._own_rows(batch)
    batch = sharding.place_batch(self._mesh, batch)
    self._state, found = self.step(self._state, self._frozen, batch, key)
    jax.block_until_ready((self._state, found))
    return time.perf_counter() - started


def run(
  members: int, count: int, microbatches: int, share: float
) -> dict[int, dict]:
  """{1: {...}, members: {...}}: seconds of each step, compiling, memory."""
  config = reward_config.get_config("coffee_bar")
  config.member_share = share
  config.microbatches = microbatches or config.microbatches
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with tempfile.TemporaryDirectory() as workdir, jax.set_mesh(mesh):
    start = begin.start(config, "reward", Path(workdir), "preferences", mesh)
    data = inputs.read(config, begin.load_tokenizer(start), "preferences")
    arms = {n: Arm(config, start, mesh, n, data) for n in (1, members)}
    batches = [next(data.train) for _ in range(count)]
    seconds: dict[int, list[float]] = {n: [] for n in arms}
    for batch in batches:  # a bucket is compiled when it is first seen
      for arm in arms.values():
        arm.run(batch, 0)
    for number, batch in enumerate(batches):
      for n in list(arms)[:: -1 if number % 2 else 1]:
        seconds[n].append(arms[n].run(batch, number + 1))
  return {
    n: {
      "trained": arm.trained,
      "seconds": seconds[n],
      "seconds_compiling": arm.step.compile_seconds,
      "peak_bytes": arm.step.peak_bytes,
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
  print(", ".join(f"{k} {v}" for k, v in lora_vs_full.machine().items()))
  print("| models | trained | seconds a step | compiling, s | peak, MiB |")
  print("| --- | --- | --- | --- | --- |")
  for n, row in found.items():
    times = row["seconds"]
    spread = lora_vs_full.spread(statistics.median(times), times)
    print(
      f"| {n} | {row['trained']} | {spread} | {row['seconds_compiling']:.1f}"
      f" | {lora_vs_full.mebibytes(row['peak_bytes'])} |"
    )
  one, many = (row["seconds"] for row in found.values())
  ratios = [b / a for a, b in zip(one, many, strict=True)]
  print(
    f"{given.members} models take {statistics.median(ratios):.2f} times one"
    f" ({min(ratios):.2f} to {max(ratios):.2f}; median over the same batches)."
  )


if __name__ == "__main__":
  main()
