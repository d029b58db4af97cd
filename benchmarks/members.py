"""What members of a run take, in seconds and memory, beside single runs.

  python -m benchmarks.members
  python -m benchmarks.members --members=2,8 --steps=20
  python -m benchmarks.members --plan=v5e:4x4 --workdir=runs/members

The first two measure the training step of configs/reward.py on pairs of
`coffee_bar`, preset small: K members in one step, and the step of a single run
K times. Both take turns step by step, each first in every other turn, on the
same batches, from the host. Weights are random; time and memory do not depend
on them.

With --plan nothing is run: the compiler says what the reward step and the RL
iteration of `--model` (Gemma-2B) take on a slice that need not be there, for
each number of members (libtpu is needed; see `benchmarks.efficiency` for
lengths and batches). Results: README.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import efficiency, results
from configs import reward as reward_config
from perl_jax import sharding
from perl_jax.data.batches import widths
from perl_jax.tasks import reward
from perl_jax.tasks.initial import trainable
from perl_jax.tasks.settings import defaults, shared, streams
from perl_jax.tasks.settings import members as settings
from perl_jax.tasks.training import batching, begin, inputs, together


class Arm:
  """The training step of some members, or of one run for each of them.

  Attributes:
    step: The compiled step.
  """

  def __init__(
    self,
    configs: Sequence[shared.Config],
    start: Any,
    mesh: Any,
    max_targets: int,
    frozen: Any,
    *,
    as_one: bool,
  ):
    member = together.ALONE
    if as_one:
      values = settings.values_of(configs)
      member = together.Member(0, together.Shared(len(configs), values))
    self._common, self._mesh, self._frozen = member.shared, mesh, frozen
    self._states = []
    for own in configs:
      role = trainable.trainable_role(
        start,
        lora=shared.lora_spec(own),
        tuning="lora",
        seed=own.seed,
        head=own.head,
      )
      made = begin.Prepared(role, {"reward": role.trainable}, {})
      self._states.append(made.state(mesh, shared.make_optimizer(own)))
    self._keys = [
      streams.key_of(own.seed, streams.Stream.REWARD) for own in configs
    ]
    self.step = reward.make_train_step(
      configs[0], role.backbone, max_targets, member=member
    )

  def run(self, batches: Sequence[Any], number: int) -> float:
    """A step of all on batches on the host; returns its seconds."""
    jax.block_until_ready(self._states)
    started = time.perf_counter()
    if self._common is not None:
      batches = widths.as_wide(batches)
    calls = {}
    for k, batch in enumerate(batches):
      device = sharding.place_batch(self._mesh, batch)
      key = jax.random.fold_in(self._keys[k], number)
      args = self._states[k], self._frozen, device, key
      calls[k] = together.Call(self.step, args)
    if self._common is not None:
      found = self._common.call(calls)
    else:
      found = {k: call.alone() for k, call in calls.items()}
    self._states = [found[k][0] for k in sorted(found)]
    jax.block_until_ready(self._states)
    return time.perf_counter() - started


def run(
  counts: Sequence[int], steps: int, microbatches: int
) -> dict[int, dict[str, dict[str, Any]]]:
  """Measures both sides for each number of members.

  Args:
    counts: Numbers of members.
    steps: Measured steps.
    microbatches: Microbatches of a step; 0 is the config's number.

  Returns:
    For each number "members" and "single": "seconds" of each step of all,
    "seconds_compiling", and the compiler's "peak_bytes".
  """
  config = reward_config.get_config("coffee_bar")
  config.microbatches = microbatches or config.microbatches
  config = defaults.from_scratch(config)
  mesh, found = sharding.make_mesh(data=1, fsdp=1, tensor=1), {}
  with tempfile.TemporaryDirectory() as workdir, jax.set_mesh(mesh):
    start, tokenization = begin.start(
      config, "reward", Path(workdir), "preferences", mesh
    )
    packing = batching.Packing.of(start.config, targets=False)
    frozen = sharding.place(mesh, start.role.frozen, share=True)
    for count in counts:
      configs = [config]
      if count > 1:
        several = config.copy_and_resolve_references()
        several.members = count
        configs = settings.configs_of(several)
      read = [
        inputs.read(own, tokenization, "preferences", packing=packing)
        for own in configs
      ]
      most = max(data.max_targets for data in read)
      given = configs, start, mesh, most, frozen
      arms = {
        "members": Arm(*given, as_one=True),
        "single": Arm(*given, as_one=False),
      }
      batches = [[next(data.train) for data in read] for _ in range(steps)]
      found[count] = _measured(arms, batches)
  return found


def _measured(
  arms: Mapping[str, Arm], batches: Sequence[Sequence[Any]]
) -> dict[str, dict[str, Any]]:
  seconds: dict[str, list[float]] = {name: [] for name in arms}
  for arm in arms.values():
    for batch in batches:  # a length is compiled when it is first seen
      arm.run(batch, 0)
  for number, batch in enumerate(batches, 1):
    for name in list(arms)[:: -1 if number % 2 else 1]:
      seconds[name].append(arms[name].run(batch, number))
  return {
    name: {
      "seconds": seconds[name],
      "seconds_compiling": arm.step.compile_seconds,
      "peak_bytes": arm.step.peak_bytes,
    }
    for name, arm in arms.items()
  }


def table(found: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
  """A Markdown table of what was measured, a line for each number."""
  yield (
    "| members | seconds of all in one | seconds of single runs | ratio"
    " | compiling, s | peak, MiB | peak of one, MiB |"
  )
  yield "|---|---|---|---|---|---|---|"
  for count, row in found.items():
    one, single = row["members"], row["single"]
    pairs = zip(one["seconds"], single["seconds"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    spreads = (
      results.spread(statistics.median(r["seconds"]), r["seconds"])
      for r in (one, single)
    )
    yield (
      f"| {count} | {' | '.join(spreads)} | {ratio:.2f}"
      f" | {one['seconds_compiling']:.1f}"
      f" | {results.mebibytes(one['peak_bytes'])}"
      f" | {results.mebibytes(single['peak_bytes'])} |"
    )


def planned(
  model: str, topology: str, counts: Sequence[int], workdir: Path
) -> dict[int, dict[str, Any]]:
  """Plans of the reward step and the RL iteration, by number of members."""
  found = {}
  for count in counts:
    config = efficiency.config_of(
      model, topology, stages="reward,rl", full=False
    )
    with config.unlocked():
      for name in ("reward", "rl"):
        config[name].members = count
    made = efficiency.planned(config, workdir / f"{model}-{count}")
    found[count] = {k: v["lora"] for k, v in made["stages"].items()}
  return found


def plan_table(found: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
  """A Markdown table of plans, a line for each stage and number of members."""
  yield (
    "| stage | members | GiB a device | fits | s a step | s of single runs |"
    " ratio |"
  )
  yield "|---|---|---|---|---|---|---|"
  for name in next(iter(found.values())):
    one = found[min(found)][name]["seconds"]
    one = one / min(found) if one else None
    for count, stages in found.items():
      stage = stages[name]
      line = f"| {name} | {count} | {stage['peak_bytes'] / 2**30:.2f}"
      line += f" | {'yes' if stage['fits'] else 'no'}"
      if one and stage["seconds"]:
        line += f" | {stage['seconds']:.2f} | {count * one:.2f}"
        yield f"{line} | {stage['seconds'] / (count * one):.2f} |"
      else:
        yield f"{line} | | | |"


def main() -> None:
  """Measures or plans, and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--members", default="1,4,16")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--microbatches", type=int, default=0)
  parser.add_argument("--plan", default="", help="a slice, such as v5e:4x4")
  parser.add_argument("--model", default="gemma_2b")
  parser.add_argument("--workdir", type=Path, default=Path("runs/members"))
  given = parser.parse_args()
  counts = [int(n) for n in given.members.split(",")]
  if given.plan:
    found = planned(given.model, given.plan, counts, given.workdir)
    print("\n".join(plan_table(found)))
    return
  found = run(counts, given.steps, given.microbatches)
  print(results.in_line(results.machine()))
  print("\n".join(table(found)))
  print(json.dumps(found))


if __name__ == "__main__":
  main()
