"""Utilisation of an accelerator by a reward step, decoding, an RL iteration.

  python -m benchmarks.accelerator
  python -m benchmarks.accelerator --profile=runs/profile

A random Llama of 1.24 B parameters (the shape of Llama-3.2-1B) on one device:
LoRA on a bfloat16 base, and full tuning in float32, both computing in bfloat16.
The arms of `speed_arms.py`, one process each.

For each phase it prints seconds, and the FLOP/s of the matrix products as a
share of the chip's peak. `planning/flops.py` counts products in the traced
program, recomputation in the backward pass included; `planning/chips.py` has
the peaks. Decoding reads all weights and the whole KV cache once for each token
but the first. The samples of a prompt share a row of the cache, which has room
for all of them from the beginning: B rows of P + G T columns. Bytes and seconds
are those of full-length responses less those of responses half as long, so that
prefill cancels:

  bandwidth = (bytes(T) - bytes(T / 2)) / (seconds(T) - seconds(T / 2))
  bytes(T)  = (T - 1) (bytes of the policy + B (P + G T) bytes of a column)

After each case the tables so far are printed and written. Peak memory is the
allocator's. With --profile each arm writes a trace of one step more, for
TensorBoard or XProf. On a device that `chips.py` does not list, shares are left
out.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from benchmarks import rl_speed
from perl_jax import files
from perl_jax.planning import chips

MODEL = {
  "vocab_size": 128_256,
  "num_layers": 16,
  "width": 2048,
  "mlp_width": 8192,
  "num_heads": 32,
  "num_kv_heads": 8,
  "head_dim": 64,
  "rope_theta": 500_000.0,
  "max_len": 2048,
  "dtype": "bfloat16",
}
LORA = {"base_dtype": "bfloat16"}
REWARD = {
  "prompts": 16,
  "prompt_len": 512,
  "response_len": 512,
  "microbatches": 8,
}
RL = {"prompts": 16, "group": 4, "prompt_len": 512, "response_len": 256}

# The same with responses half as long.
HALF = "rloo, half"

# By case: an arm of `speed_arms.py`, and the fields that differ from it.
# What says most comes first: a machine may be lent for a short time.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
  "rloo": ("rloo", RL | LORA),
  "rloo, full": ("rloo, full", RL),
  "reward": ("reward", REWARD | LORA),
  "reward, full": ("reward, full", REWARD),
  HALF: ("rloo", RL | LORA),
}


def fields_of(case: str, changes: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the arm of a case.

  Args:
    case: Name in `CASES`.
    changes: Fields that override the case's; "model" is merged into its own.
  """
  fields = CASES[case][1] | dict(changes)
  fields["model"] = MODEL | dict(changes.get("model", {}))
  if case == HALF:
    fields["response_len"] //= 2
  return fields


def decode_bandwidth(
  whole: Mapping[str, Any],
  half: Mapping[str, Any],
  fields: Mapping[str, Any],
) -> float:
  """Bytes per second that decoding reads; see the module.

  Args:
    whole: Result of `run_case` with full-length responses.
    half: Result with responses half as long.
    fields: Fields of the arm with full-length responses.
  """
  model = fields["model"]
  item = jnp.dtype(model["dtype"]).itemsize
  width = 2 * model["num_kv_heads"] * model["head_dim"] * model["num_layers"]

  def read(found, length):
    columns = fields["prompt_len"] + fields["group"] * length
    cache = fields["prompts"] * columns * width * item
    return (length - 1) * (found["policy_bytes"] + cache)

  length = fields["response_len"]
  seconds = whole["seconds"]["sample"] - half["seconds"]["sample"]
  return (read(whole, length) - read(half, length // 2)) / seconds


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """A Markdown table, a line for each phase of each case."""
  lines = [
    "| | phase | seconds | TFLOP | share of peak FLOP/s | peak GB |",
    "|---|---|---|---|---|---|",
  ]
  for case, row in found.items():
    chip = chips.chip_of(row["device"])
    peak = (
      f"{row['device_peak_bytes'] / 1e9:.1f}"
      if row["device_peak_bytes"]
      else ""
    )
    for phase, seconds in row["seconds"].items():
      flops = row["flops"].get(phase)
      share = ""
      if chip and flops:
        share = f"{flops / seconds / chip.flops:.1%}"
      work = f"{flops / 1e12:.3g}" if flops else ""
      lines.append(
        f"| {case} | {phase} | {seconds:.3f} | {work} | {share} | {peak} |"
      )
  return "\n".join(lines)


def ratios(found: Mapping[str, Mapping[str, Any]]) -> str:
  """A Markdown table: seconds of a step with LoRA over full tuning."""
  lines = ["| LoRA / full | seconds |", "|---|---|"]
  for case, lora, full in rl_speed.lora_and_full(found):
    ratio = lora["seconds"]["all"] / full["seconds"]["all"]
    lines.append(f"| {case} | {ratio:.2f} |")
  return "\n".join(lines)


def page(
  found: Mapping[str, Mapping[str, Any]], bandwidth: float | None
) -> str:
  """The tables of the cases so far, and what decoding reads if it is known."""
  device = next(iter(found.values()))["device"]
  text = f"{device}\n\n{table(found)}\n\n{ratios(found)}\n"
  if bandwidth is None:
    return text
  chip = chips.chip_of(device)
  share = (
    f", {bandwidth / chip.hbm_bandwidth:.1%} of the chip's" if chip else ""
  )
  return f"{text}\ndecoding reads {bandwidth / 1e9:.0f} GB/s{share}"


def run_case(
  case: str, count: int, changes: Mapping[str, Any], profile: Path | None
) -> dict[str, Any]:
  """Runs a case in a process of its own.

  Returns:
    The JSON of `speed_arms`, with "seconds": medians by phase.
  """
  arm, fields = CASES[case][0], fields_of(case, changes)
  flags = []
  if profile:
    flags = [f"--profile={(profile / case.replace(', ', '_')).resolve()}"]
  found = rl_speed.run_arm(arm, count, json.dumps(fields), *flags)
  seconds = {
    phase: rl_speed.median_of(found, phase, 0)
    for phase in found["steps"][0]["spent"]
  }
  return found | {"seconds": seconds}


def main() -> None:
  """Measures and prints; with --json it writes a file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--set", default="{}", help="JSON: fields of all arms")
  parser.add_argument("--profile", type=Path, help="folder for traces")
  parser.add_argument("--json", type=Path, help="file to write")
  given = parser.parse_args()
  changes, found = json.loads(given.set), {}
  for case in CASES:
    found[case] = run_case(case, given.steps, changes, given.profile)
    bandwidth = None
    if HALF in found:
      bandwidth = decode_bandwidth(
        found["rloo"], found[HALF], fields_of("rloo", changes)
      )
    print(page(found, bandwidth), flush=True)
    if given.json:
      given.json.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(
        given.json, {"cases": found, "decode_bytes_per_second": bandwidth}
      )


if __name__ == "__main__":
  main()
