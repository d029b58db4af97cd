"""What a run achieved, as rows for the terminal table and for the report.

A summary is flat: `<stage>.<name>`, `seconds.<stage>`, `memory.<stage>`. Names
that end in `_before` and `_after` make one row with the change between them,
and so do `evaluate.anchor.<name>` and `evaluate.policy.<name>`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

MISSING = "n/a"

# Shares of something, shown in percent.
RATES = frozenset(
  {
    "accuracy",
    "balanced_accuracy",
    "base_rate",
    "clip_share",
    "exact_match",
    "gold",
    "known_api",
    "repetition",
    "stop_rate",
    "trainable_share",
    "truncated_rate",
    "valid_json",
    "win_rate",
  }
)
# Judgements of whether a response is right, the most telling first.
JUDGEMENTS = ("gold", "exact_match", "valid_json", "known_api", "win_rate")
# A rise in these is what the run is for.
WANTED = frozenset((*JUDGEMENTS, "reward"))

_NAMES = {
  "gold": "gold success",
  "exact_match": "exact match with the human turn",
  "known_api": "known API name",
  "valid_json": "valid JSON",
  "reward": "reward (reward model)",
  "length": "response length (tokens)",
  "stop_rate": "responses with a stop token",
  "win_rate": "win rate against the anchor",
  "auroc": "AUROC",
  "kl": "KL to the anchor (nats)",
  "kl_per_token": "KL per token (nats)",
  "entropy": "entropy (nats per token)",
  "repetition": "repeated 4-grams",
  "log_loss": "log loss (nats)",
  "calibration_error": "calibration error",
  "trainable_share": "trainable share of all parameters",
}
_STAGES = {
  "sft": "Anchor",
  "reward": "Reward model",
  "rl": "Policy",
  "dpo": "Policy (DPO)",
  "evaluate": "Evaluation",
}
_SINGLES = (
  *(f"sft.{name}" for name in JUDGEMENTS),
  "reward.accuracy",
  "reward.auroc",
  "reward.calibration_error",
  "reward.trainable_share",
  "evaluate.reward_model.accuracy",
  "evaluate.reward_model.auroc",
)


class Row(NamedTuple):
  """One line of the headline table; `better` is None where up is not good."""

  label: str
  before: str
  after: str
  change: str
  better: bool | None


def number(value: object) -> float:
  """The value as a float; nan for what is no number ("inf" is one)."""
  if isinstance(value, bool) or value is None:
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def readable(name: str) -> str:
  """`exact_match` -> `exact match with the human turn`."""
  return _NAMES.get(name, name.replace("_", " "))


def show(name: str, value: object) -> str:
  """A value as people write it: shares in percent; only an exact 0 is "0"."""
  x = number(value)
  if not math.isfinite(x):
    return MISSING if math.isnan(x) else str(x)
  if name in RATES:
    digits = 3 if 0 < abs(x) < 0.001 else 2 if 0 < abs(x) < 0.01 else 1
    return f"{100 * x:.{digits}f}%"
  if name == "length":
    return f"{x:.1f}"
  if x == 0 or isinstance(value, int):
    return f"{x:,.0f}"
  if abs(x) >= 100:
    return f"{x:,.0f}" if abs(x) >= 10_000 else f"{x:,.1f}"
  return f"{x:.3f}" if abs(x) >= 0.01 else f"{x:.3g}"


def duration(seconds: object) -> str:
  """3723.4 -> 1:02:03; below a minute 12.3 s, 0.12 s, 12 ms."""
  x = number(seconds)
  if not math.isfinite(x):
    return MISSING
  if 0 < x < 0.0995:
    return f"{1000 * x:.2g} ms"
  if x < 59.95:
    return f"{x:.{2 if x < 0.995 else 1}f} s"
  minutes, rest = divmod(round(x), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: object) -> str:
  """Bytes in binary units."""
  x = number(count)
  if not math.isfinite(x):
    return MISSING
  for unit in ("B", "KiB", "MiB", "GiB"):
    if abs(x) < 1024:
      break
    x, unit = x / 1024, "TiB"
  return f"{x:.0f} {unit}" if unit == "B" else f"{x:.3g} {unit}"


def headline(summary: Mapping[str, object]) -> list[Row]:
  """The rows that matter, in a fixed order; empty if there are none of them."""
  rows = []
  for stage in ("rl", "dpo", "evaluate"):
    found = comparisons(summary, stage)
    wanted = [name for name in (*JUDGEMENTS, "reward", "kl") if name in found]
    # An evaluation repeats what its stage has measured on the way.
    rest = sorted(set(found) - set(wanted)) if stage != "evaluate" else []
    rows += [_row(stage, name, *found[name]) for name in (*wanted, *rest)]
  for key in _SINGLES:
    # So does an evaluation of the reward model.
    measured = key.replace("evaluate.reward_model.", "reward.")
    if key in summary and (measured == key or measured not in summary):
      rows.append(_single(summary, key))
  if "seconds.total" in summary:
    total = duration(summary["seconds.total"])
    rows.append(Row("Time", "", total, "", None))
  return rows


def comparisons(
  summary: Mapping[str, object], stage: str
) -> dict[str, tuple[object, object]]:
  """What a stage has of anchor and policy: {name: (before, after)}.

  Spelled `<stage>.<name>_before` and `_after` by a stage that trains, and
  `<stage>.anchor.<name>` and `<stage>.policy.<name>` by an evaluation.
  """
  found = {}
  for key, after in summary.items():
    name = key.removeprefix(f"{stage}.")
    if name == key:
      continue
    if name.endswith("_after"):
      name = name.removesuffix("_after")
      before = summary.get(f"{stage}.{name}_before")
    elif name.startswith("policy."):
      name = name.removeprefix("policy.")
      before = summary.get(f"{stage}.anchor.{name}")
    elif name == "kl":
      before = summary.get(f"{stage}.kl_at_step_0")
    else:
      continue
    if before is not None or name == "kl":
      found[name] = (before, after)
  return found


def takeaway(summary: Mapping[str, object]) -> str:
  """One sentence on whether the policy got better; empty without a policy."""
  for stage in ("rl", "dpo", "evaluate"):
    found = comparisons(summary, stage)
    for name in (*JUDGEMENTS, "reward"):
      before, after = map(number, found.get(name, (None, None)))
      if math.isnan(before) or math.isnan(after):
        continue
      what = readable(name)
      text = f"{what[0].upper()}{what[1:]} "
      if after == before:
        text += f"stayed at {show(name, after)}"
      else:
        text += "rose" if after > before else "fell"
        text += f" from {show(name, before)} to {show(name, after)}"
      kl = number(found.get("kl", (None, None))[1])
      if not math.isnan(kl):
        text += f", at a KL of {kl:.3g} nats to the anchor"
      return text + "."
  return ""


def _row(stage: str, name: str, before: object, after: object) -> Row:
  a, b = number(before), number(after)
  change, better = "", None
  if math.isfinite(a) and math.isfinite(b):
    if name in RATES:
      change = f"{100 * (b - a):+.1f} points" if a != b else "0"
    else:
      change = ("+" if b > a else "") + show(name, b - a)
    if name in WANTED and a != b:
      better = b > a
  before_text = "" if before is None else show(name, before)
  return Row(
    _label(stage, name), before_text, show(name, after), change, better
  )


def _single(summary: Mapping[str, object], key: str) -> Row:
  stage, name = key.split(".")[0], key.split(".")[-1]
  text = show(name, summary[key])
  low, high = summary.get(f"{key}_low"), summary.get(f"{key}_high")
  if low is not None and high is not None:
    text += f" ({show(name, low)} to {show(name, high)})"
  return Row(_label(stage, name), "", text, "", None)


def _label(stage: str, name: str) -> str:
  return f"{_STAGES.get(stage, stage)}: {readable(name)}"
