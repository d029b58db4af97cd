"""Time and memory of LoRA against full tuning, as the paper compares them.

  python -m benchmarks.lora_vs_full
  python -m benchmarks.lora_vs_full --preset=small --vocab=1024 --batch=128 \
      --prompt_len=56 --response_len=40 --json=runs/lora_vs_full.json

Weights and tokens are random, and every sequence has its full length: time and
memory do not depend on their values. The step and the iteration are those that
the tasks run (stages.py), with the settings of configs/reward.py and
configs/rl.py; only shapes and `tuning` are set here. How memory is counted:
arms.py. Results: README.md.

LoRA and full tuning take turns step by step, each first in every other turn, so
that other load on the machine affects both. Times are medians after a warm-up
in which everything compiles. One device.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks import arms, results
from perl_jax import files, sharding

TUNINGS = ("lora", "full")


def measure(
  make: Callable[[str], Any], settings: arms.Settings
) -> dict[str, dict[str, Any]]:
  """Runs both tunings in turns.

  Args:
    make: Returns the arm of a tuning; see `arms`.
    settings: Its numbers of steps.

  Returns:
    For "lora" and "full": the bytes and shares of `costs`, and of each phase
    the median "seconds" and "all_seconds".
  """
  made = {tuning: make(tuning) for tuning in TUNINGS}
  seconds: dict[str, dict[str, list[float]]] = {t: {} for t in TUNINGS}
  for number in range(settings.warmup + settings.steps):
    for tuning in TUNINGS if number % 2 else TUNINGS[::-1]:
      found = made[tuning].run(number + 1)
      if number >= settings.warmup:
        for phase, value in found.items():
          seconds[tuning].setdefault(phase, []).append(value)
  return {
    tuning: made[tuning].costs()
    | {
      "seconds": {k: statistics.median(v) for k, v in seconds[tuning].items()},
      "all_seconds": seconds[tuning],
    }
    for tuning in TUNINGS
  }


def ratios(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """LoRA against full tuning as in table 1 of Sidahmed et al. 2024.

  Args:
    found: As `measure` returns it.

  Returns:
    `speed_up` of each phase, seconds of full / seconds of LoRA; and for each
    entry `<name>_bytes`, `<name>_percent`, LoRA in percent of full.

  Reference: arXiv:2403.10704.
  """
  lora, full = found["lora"], found["full"]

  def percent(mine, other):
    if isinstance(mine, Mapping):
      return {k: percent(mine[k], other[k]) for k in mine}
    return 100 * mine / other

  result = {
    "speed_up": {
      phase: full["seconds"][phase] / lora["seconds"][phase]
      for phase in lora["seconds"]
    }
  }
  for name in lora:
    if name.endswith("_bytes"):
      key = f"{name.removesuffix('_bytes')}_percent"
      result[key] = percent(lora[name], full[name])
  return result


def table(title: str, found: Mapping[str, Any]) -> str:
  """A Markdown table: a line for each number, LoRA, full, and their ratio."""
  lora, full, ratio = (found[k] for k in ("lora", "full", "ratio"))
  lines = [f"| {title} | LoRA | full | LoRA / full |", "|---|---|---|---|"]

  def line(name, text, relation):
    lines.append(f"| {name} | {text(lora)} | {text(full)} | {relation} |")

  line("trained", lambda x: f"{x['trainable_share']:.3%}", "")
  for name, key in (
    ("optimizer, MiB", "optimizer"),
    ("held, MiB", "held"),
    ("**peak, MiB**", "peak"),
  ):
    line(
      name,
      lambda x, key=key: results.mebibytes(x[f"{key}_bytes"]),
      f"{ratio[f'{key}_percent']:.1f} %",
    )
  kinds = {"compiler_peak": "the function", "phase": "with the other roles"}
  phases = lora["phase_bytes"]
  for kind, title in kinds.items() if len(phases) > 1 else ():
    for phase in phases:
      line(
        f"{phase}: {title}, MiB",
        lambda x, k=kind, p=phase: results.mebibytes(x[f"{k}_bytes"][p]),
        f"{ratio[f'{kind}_percent'][phase]:.1f} %",
      )
  for phase in lora["seconds"]:
    bold = "**" if phase in ("step", "iteration") else ""
    line(
      f"{bold}{phase}, s{bold}",
      lambda x, p=phase: results.spread(x["seconds"][p], x["all_seconds"][p]),
      f"speed-up {ratio['speed_up'][phase]:.2f}x",
    )
  return "\n".join(lines)


def run(settings: arms.Settings) -> dict[str, Any]:
  """Measures reward step and RL iteration.

  Returns:
    {"settings", "machine", "reward", "rl"}, JSON-able; the last two are results
    of `measure`, with "ratio" from `ratios`.
  """
  result: dict[str, Any] = {
    "settings": dataclasses.asdict(settings),
    "machine": results.machine(),
  }
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with jax.set_mesh(mesh):
    for name, arm in (("reward", arms.RewardArm), ("rl", arms.RLArm)):
      start = arms.make_start(settings)
      found = measure(
        lambda tuning, arm=arm, start=start: arm(settings, start, tuning, mesh),
        settings,
      )
      result[name] = found | {"ratio": ratios(found)}
  return result


def flags() -> argparse.Namespace:
  """Reads the command line: the fields of `Settings`, and a file to write."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for field in dataclasses.fields(arms.Settings):
    parser.add_argument(
      f"--{field.name}", type=field.type, default=field.default
    )
  parser.add_argument("--json", type=Path, default=None, help="a file to write")
  return parser.parse_args()


def main() -> None:
  """Measures and prints; with --json it writes a file."""
  given = vars(flags())
  path = given.pop("json")
  result = run(arms.Settings(**given))
  for name in ("settings", "machine"):
    print(results.in_line(result[name]))
  print("\n" + table("reward step", result["reward"]))
  print("\n" + table("RL iteration", result["rl"]))
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result)
    print(f"\n{path}")


if __name__ == "__main__":
  main()
