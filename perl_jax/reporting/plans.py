"""A plan as Markdown tables.

Of each stage: its memory by what is held, the predicted time of its programs,
and the changes that were tried to make it fit.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from perl_jax.reporting import numbers


def lines(found: Mapping[str, Any]) -> Iterator[str]:
  """Lines of Markdown about what `tasks.plan` found."""
  mesh = ", ".join(f"{name}={size}" for name, size in found["mesh"].items())
  yield (
    f"\n{found['model']} on {found['devices']} x {found['device_kind']},"
    f" mesh {mesh}"
  )
  for name, by_tuning in found["stages"].items():
    for tuning, stage in by_tuning.items():
      yield f"\n## {name}, {tuning}, batch of {stage['batch_size']}\n"
      yield from _memory(stage)
      yield from _time(stage)
      yield from _changes(stage)
    if {"lora", "full"} <= by_tuning.keys():
      yield f"\n{_compared(name, by_tuning)}"
  if "chip" in found:
    assumed = "; ".join(found["assumptions"])
    yield f"\nSeconds are predicted. Assumed: {assumed}."
    yield f"Chip: {found['chip']['name']}, {found['chip']['source']}"
  else:
    yield "\nNo seconds: this device is in no table of chips."


def summary(found: Mapping[str, Any]) -> dict[str, float]:
  """{"rl.lora.peak_bytes": ..., "rl.lora.seconds": ..., "rl.lora.fits": 1}."""
  flat = {}
  for name, by_tuning in found["stages"].items():
    for tuning, stage in by_tuning.items():
      for key in ("peak_bytes", "seconds", "fits"):
        if stage[key] is not None:
          flat[f"{name}.{tuning}.{key}"] = float(stage[key])
  return flat


def _memory(stage: Mapping[str, Any]) -> Iterator[str]:
  yield "| on a device | bytes |"
  yield "|---|---|"
  for name, count in stage["held"].items():
    yield f"| {name} | {numbers.size(count)} |"
  for name, program in stage["programs"].items():
    if "refused" in program:
      yield f"| {name} | refused by the compiler: {program['refused']} |"
      continue
    own = program["peak_bytes"] - sum(stage["held"].values())
    text = f"| {name}: beyond what is held | {numbers.size(own)}"
    if name == "sample":
      text += f" (KV cache {numbers.size(stage['cache_bytes'])})"
    yield f"{text} |"
  yield f"| **peak** | **{numbers.size(stage['peak_bytes'])}** |"
  if stage["limit_bytes"] is not None:
    left = stage["limit_bytes"] - stage["peak_bytes"]
    word = "fits" if stage["fits"] else "DOES NOT FIT"
    side = "left" if left >= 0 else "too much"
    yield (
      f"\n{word}: {numbers.size(abs(left))} {side} of"
      f" {numbers.size(stage['limit_bytes'])}"
    )


def _time(stage: Mapping[str, Any]) -> Iterator[str]:
  timed = {
    name: program
    for name, program in stage["programs"].items()
    if "times" in program
  }
  if not timed:
    return
  yield (
    "\n| program | FLOPs | sent by a device | compute | memory | network"
    " | bound | predicted |"
  )
  yield "|---|---|---|---|---|---|---|---|"
  for name, program in timed.items():
    cost, times = program["cost"], program["times"]
    compute, memory, network, predicted = (
      numbers.duration(times[name])
      for name in ("compute", "memory", "network", "step")
    )
    runs = "" if program["runs"] == 1 else f" x {program['runs']}"
    yield (
      f"| {name}{runs} | {cost['flops']:.3g}"
      f" | {numbers.size(sum(cost['collective_bytes'].values()))}"
      f" | {compute} | {memory} | {network} | {times['bound']} | {predicted} |"
    )
  if stage["seconds"] is not None:
    yield f"\npredicted: {numbers.duration(stage['seconds'])} a step"


def _changes(stage: Mapping[str, Any]) -> Iterator[str]:
  tried = stage.get("changes", [])
  if not tried:
    return
  yield "\nTried, one on top of the other:\n"
  yield "| change | peak | |"
  yield "|---|---|---|"
  for row in tried:
    word = "fits" if row["fits"] else "does not fit"
    yield f"| `{row['change']}` | {numbers.size(row['peak_bytes'])} | {word} |"
  if not tried[-1]["fits"]:
    yield "\nNone of them fits: take more devices, or a smaller model."


def _compared(name: str, by_tuning: Mapping[str, Any]) -> str:
  lora, full = by_tuning["lora"], by_tuning["full"]
  text = (
    f"{name}: LoRA needs {lora['peak_bytes'] / full['peak_bytes']:.1%} of full"
    " tuning's memory"
  )
  if lora["seconds"] and full["seconds"]:
    text += f" and {lora['seconds'] / full['seconds']:.1%} of its time"
  return text + "."
