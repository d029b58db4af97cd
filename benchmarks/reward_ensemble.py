"""What an ensemble of reward models costs to train, against one.

  python -m benchmarks.reward_ensemble
  python -m benchmarks.reward_ensemble --members=8 --steps=20

The reward step of configs/reward.py on real pairs of `coffee_bar`, preset
small: one model, and `--members` models in one step. Both take turns step by
step, each first in every other turn; the same batches go to both. Weights are
random, and what is measured does not depend on them. Results: README.md.
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
from perl_jax.tasks import inputs, setup
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.compiled import Compiled


class Arm:
  """The learning step of so many reward models."""

  def __init__(self, config, start, mesh, members: int, max_response: int):
    lora = setup.lora_spec(config)
    optimizer = setup.make_optimizer(config)
    trainable, frozen = start_lib.ensemble_of(
      start,
      members=members,
      lora=lora,
      tuning="lora",
      seed=config.seed,
      head=config.head,
    )
    backbone = roles.Backbone(start.config, lora)
    loss = steps.pairwise_loss(backbone, max_response=max_response)
    parts = config.microbatches
    if members == 1:
      init = steps.init_state
      step = steps.make_train_step(loss, optimizer, microbatches=parts)
    else:
      init = steps.init_ensemble
      step = steps.make_ensemble_step(
        loss,
        optimizer,
        members=members,
        microbatches=parts,
        bootstrap_key=jax.random.key(1),
      )
    state = init(sharding.place(mesh, trainable), optimizer)
    self._state = sharding.place(mesh, state)
    self._frozen = sharding.place(mesh, frozen)
    self.step = Compiled(step, name=f"{members} models", donate=(0,))
    self.trained = params_lib.count(trainable)

  def run(self, batch, number: int) -> float:
    """Seconds of one step."""
    key = jax.random.fold_in(jax.random.key(0), number)
    jax.block_until_ready((self._state, batch, key))
    started = time.perf_counter()
    self._state, found = self.step(self._state, self._frozen, batch, key)
    jax.block_until_ready((self._state, found))
    return time.perf_counter() - started


def run(members: int, count: int, microbatches: int) -> dict[str, dict]:
  """{1: {...}, members: {...}}: seconds of each step, compiling, memory."""
  config = reward_config.get_config("coffee_bar")
  config.microbatches = microbatches or config.microbatches
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with tempfile.TemporaryDirectory() as workdir, jax.set_mesh(mesh):
    start = inputs.start(config, "reward", Path(workdir), "preferences", mesh)
    data = inputs.preferences(config, inputs.load_tokenizer(start))
    arms = {
      n: Arm(config, start, mesh, n, data.max_targets) for n in (1, members)
    }
    batches = [next(data.train) for _ in range(count)]
    seconds: dict[int, list[float]] = {n: [] for n in arms}
    for batch in batches:  # a bucket is compiled when it is first seen
      for arm in arms.values():
        arm.run(sharding.place_batch(mesh, batch), 0)
    for number, batch in enumerate(batches):
      placed = sharding.place_batch(mesh, batch)
      for n in list(arms)[:: -1 if number % 2 else 1]:
        seconds[n].append(arms[n].run(placed, number + 1))
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
  given = parser.parse_args()
  found = run(given.members, given.steps, given.microbatches)
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
  one, many = (sum(row["seconds"]) for row in found.values())
  print(f"{given.members} models take {many / one:.2f} times one.")


if __name__ == "__main__":
  main()
