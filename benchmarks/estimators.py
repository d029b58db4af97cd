"""Every estimator and DPO on the coffee orders, with the same budget.

  python -m benchmarks.estimators --workdir=runs/estimators

One anchor and one reward model are trained (configs/sft.py, configs/reward.py),
then a policy by each method from each seed. Seeds differ in data order,
adapters and samples, and share the anchor and the reward model. The budget is
the number of responses that are trained on: `--iterations` times `--responses`.
DPO reads as many responses, two to a pair; its pairs are those that the reward
model was trained on.

Gold success is the share of held-out orders that are answered exactly right;
nothing is trained on it. The last checkpoint counts, not the best.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import coffee, results
from configs import dpo as dpo_config
from configs import rl as rl_config
from perl_jax import files

GROUP = 4
_GROUPED = {"samples_per_prompt": GROUP}

# Usual settings of an estimator where they differ from configs/rl.py.
# The KL is k1 in the reward but for GRPO and Dr. GRPO, which are published
# with k3 in the loss.
METHODS: Mapping[str, Mapping[str, Any]] = {
  "reinforce": {},
  "ppo": {
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.gae_lambda": 0.95,
    "ppo.value_clip": 0.5,
    "whiten": True,
  },
  "rloo": _GROUPED,
  # Rewards are divided by their spread within a group: with the beta of the
  # others the policy leaves the anchor and gold falls (README.md).
  "grpo": _GROUPED
  | {
    "kl.estimator": "k3",
    "kl.place": "loss",
    "reduction": "sequence_mean",
    "beta": 0.8,
  },
  "dr_grpo": _GROUPED
  | {"kl.estimator": "k3", "kl.place": "loss", "reduction": "sequence"},
}
DPO = "dpo"


def policy_config(
  method: str,
  seed: int,
  anchor: Path,
  reward: Path,
  *,
  iterations: int,
  responses: int,
):
  """The config of one run."""
  fields: dict[str, Any] = {"seed": seed, "policy.init": str(anchor)}
  fields |= {"steps": iterations, "eval_every": iterations}
  if method == DPO:
    fields["batch_size"] = responses // 2
    return coffee.changed(dpo_config.get_config(), fields)
  chosen = METHODS[method]
  fields |= {"reward.init": str(reward), "estimator": method}
  fields["batch_size"] = responses // chosen.get("samples_per_prompt", 1)
  fields["value.warmup_steps"] = min(8, iterations - 1)
  return coffee.changed(rl_config.get_config(), fields | dict(chosen))


def run(
  settings: coffee.Settings,
  *,
  seeds: int,
  iterations: int,
  responses: int,
  methods: Sequence[str],
) -> dict[str, list[dict[str, float]]]:
  """Trains by each method from each seed.

  Args:
    settings: Sizes of the runs.
    seeds: Number of seeds.
    iterations: Iterations of a run.
    responses: Responses in an iteration.
    methods: Names in `METHODS`, and `DPO`.

  Returns:
    Summaries by method, one for each seed.
  """
  anchor = coffee.anchor(settings)
  reward = coffee.reward(settings, "reward")
  found: dict[str, list[dict[str, float]]] = {}
  for seed in range(seeds):
    for method in methods:
      config = policy_config(
        method,
        seed,
        anchor,
        reward,
        iterations=iterations,
        responses=responses,
      )
      with config.unlocked():
        coffee.changed(config, settings.policy)
      workdir = settings.workdir / f"{method}_{seed}"
      found.setdefault(method, []).append(coffee.run(config, workdir))
  return found


def spread(values: list[float]) -> str:
  """Mean and sample standard deviation of shares, in percent."""
  text = f"{statistics.mean(values):.1%}"
  if len(values) > 1:
    text += f" ± {100 * statistics.stdev(values):.1f}"
  return text


def table(found: Mapping[str, list[Mapping[str, float]]]) -> str:
  """A Markdown table, a line for each method."""
  lines = [
    "| | gold, anchor | gold, policy | KL, nats a response | seconds |",
    "|---|---|---|---|---|",
  ]
  for method, runs in found.items():
    lines.append(
      f"| {method} | {spread([r['gold_before'] for r in runs])}"
      f" | {spread([r['gold_after'] for r in runs])}"
      f" | {statistics.mean(r['kl'] for r in runs):.2f}"
      f" | {statistics.mean(r['seconds'] for r in runs):.0f} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Runs, prints, writes estimators.json."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--iterations", type=int, default=64)
  parser.add_argument("--responses", type=int, default=128)
  names = (*METHODS, DPO)
  parser.add_argument("--methods", nargs="+", choices=names, default=names)
  given = vars(parser.parse_args())
  workdir = given.pop("workdir")
  found = run(coffee.Settings(workdir), **given)
  machine = results.machine()
  print(results.in_line(machine | given))
  print(table(found))
  files.write_json(
    workdir / "estimators.json", {"machine": machine, "runs": found}
  )


if __name__ == "__main__":
  main()
