"""Does an ensemble of reward models delay over-optimisation?

  python -m benchmarks.overoptimisation --workdir=runs/overoptimisation

On the coffee orders one anchor, one reward model, and an ensemble of reward
models that is trained in one run. Then the policy is trained against each, with
a weight of the KL that is too low on purpose. It is evaluated throughout: gold
success (the share of held-out orders answered exactly right), which nothing is
trained on, beside the reward and the KL.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import coffee, results
from configs import rl as rl_config
from perl_jax import files

MEMBERS = 4

# Name: (workdir of the rewards, config.reward.combine).
KINDS: Mapping[str, tuple[str, str]] = {
  "single": ("reward", "mean"),
  "mean": ("ensemble", "mean"),
  "min": ("ensemble", "min"),
  "mean - std": ("ensemble", "mean_minus_std"),
  "weight average": ("ensemble", "average"),
}


def run(
  settings: coffee.Settings,
  *,
  beta: float,
  learning_rate: float,
  steps: int,
  every: int,
  kinds: Sequence[str] = tuple(KINDS),
) -> dict[str, list[tuple[float, ...]]]:
  """Trains a policy against each kind of reward.

  Args:
    settings: Sizes of the runs.
    beta: Weight of the KL.
    learning_rate: Learning rate of the policy, constant.
    steps: Iterations.
    every: Iterations between evaluations.
    kinds: Names in `KINDS`.

  Returns:
    (gold success, KL, reward) at each evaluation, by kind.
  """
  anchor = coffee.anchor(settings)
  rewards = {
    "reward": coffee.reward(settings, "reward"),
    "ensemble": coffee.reward(settings, "ensemble", ensemble=MEMBERS),
  }
  found = {}
  for kind in kinds:
    name, combine = KINDS[kind]
    fields: dict[str, Any] = {
      "policy.init": str(anchor),
      "reward.init": str(rewards[name]),
      "reward.combine": combine,
      "beta": beta,
      "steps": steps,
      "eval_every": every,
      "optimizer.schedule": "constant",
      "optimizer.learning_rate": learning_rate,
      "value.warmup_steps": min(8, steps - 1),
    }
    config = coffee.changed(rl_config.get_config(), fields | settings.policy)
    workdir = settings.workdir / kind.replace(" ", "_")
    coffee.run(config, workdir)
    found[kind] = coffee.curve(workdir, "gold", "kl", "reward")
  return found


def table(found: Mapping[str, list[tuple[float, ...]]]) -> str:
  """A Markdown table: the best and the last gold success of each kind."""
  lines = [
    "| reward | gold, anchor | best gold, at KL | last gold, at KL"
    " | reward, first to last |",
    "|---|---|---|---|---|",
  ]
  for kind, curve in found.items():
    first, last = curve[0], curve[-1]
    best = max(curve)
    lines.append(
      f"| {kind} | {first[0]:.1%} | {best[0]:.1%}, {best[1]:.2f}"
      f" | {last[0]:.1%}, {last[1]:.2f} | {first[2]:.2f} to {last[2]:.2f} |"
    )
  return "\n".join(lines)


def curves(found: Mapping[str, list[tuple[float, ...]]], every: int) -> str:
  """A Markdown table: gold success and KL at each evaluation."""
  count = len(next(iter(found.values())))
  steps = " | ".join(str(every * i) for i in range(count))
  lines = [f"| gold, KL at iteration | {steps} |", f"|---|{'---|' * count}"]
  for kind, curve in found.items():
    cells = (f"{gold:.1%}, {kl:.2f}" for gold, kl, _ in curve)
    lines.append(f"| {kind} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  """Runs, prints, writes overoptimisation.json."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--beta", type=float, default=0.1)
  parser.add_argument("--learning_rate", type=float, default=6e-4)
  parser.add_argument("--steps", type=int, default=72)
  parser.add_argument("--every", type=int, default=8)
  names = tuple(KINDS)
  parser.add_argument("--kinds", nargs="+", choices=names, default=names)
  given = vars(parser.parse_args())
  workdir = given.pop("workdir")
  found = run(coffee.Settings(workdir), **given)
  machine = results.machine()
  print(results.in_line(machine | given))
  print(table(found))
  print("\n" + curves(found, given["every"]))
  files.write_json(
    workdir / "overoptimisation.json", {"machine": machine, "curves": found}
  )


if __name__ == "__main__":
  main()
