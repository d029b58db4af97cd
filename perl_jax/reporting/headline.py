"""What a run achieved, as rows for the terminal table and for the report.

A summary is flat: `<stage>.<name>`, `seconds.<stage>`, `memory.<stage>`. Names
that end in `_before` and `_after` make one row with the change between them.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

MISSING = "–"

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
    pairs = [
      key.removeprefix(f"{stage}.").removesuffix("_before")
      for key in summary
      if key.startswith(f"{stage}.")
      and key.endswith("_before")
      and f"{key.removesuffix('_before')}_after" in summary
    ]
    order = {name: i for i, name in enumerate((*JUDGEMENTS, "reward"))}
    for name in sorted(pairs, key=lambda n: (order.get(n, 99), n)):
      rows.append(_before_after(summary, stage, name))
    if f"{stage}.kl" in summary:
      rows.append(
        _row(
          stage,
          "kl",
          summary.get(f"{stage}.kl_at_step_0"),
          summary[f"{stage}.kl"],
        )
      )
  for key in _SINGLES:
    if key in summary:
      rows.append(_single(summary, key))
  if "seconds.total" in summary:
    total = duration(summary["seconds.total"])
    rows.append(Row("Time", "", total, "", None))
  return rows


def takeaway(summary: Mapping[str, object]) -> str:
  """One sentence on whether the policy got better; empty without RL."""
  for stage in ("rl", "dpo"):
    for name in (*JUDGEMENTS, "reward"):
      before = number(summary.get(f"{stage}.{name}_before"))
      after = number(summary.get(f"{stage}.{name}_after"))
      if math.isnan(before) or math.isnan(after):
        continue
      verb = (
        "rose" if after > before else "fell" if after < before else "stayed"
      )
      what = readable(name)
      text = f"{what[0].upper()}{what[1:]} {verb} "
      text += f"from {show(name, before)} to {show(name, after)}"
      kl = number(summary.get(f"{stage}.kl"))
      if not math.isnan(kl):
        text += f", {kl:.3g} nats from the anchor"
      return text + "."
  return ""


def _before_after(summary: Mapping[str, object], stage: str, name: str) -> Row:
  before = summary[f"{stage}.{name}_before"]
  return _row(stage, name, before, summary[f"{stage}.{name}_after"])


def _row(stage: str, name: str, before: object, after: object) -> Row:
  a, b = number(before), number(after)
  change, better = "", None
  if math.isfinite(a) and math.isfinite(b):
    if name in RATES:
      change = f"{100 * (b - a):+.1f} points"
    else:
      change = ("+" if b > a else "") + show(name, b - a)
    if name in WANTED and a != b:
      better = b > a
  before_text = "" if before is None else show(name, before)
  return Row(
    _label(stage, name), before_text, show(name, after), change, better
  )


def _single(summary: Mapping[str, object], key: str) -> Row:
  stage, name = key.split(".", 1)
  text = show(name, summary[key])
  low, high = summary.get(f"{key}_low"), summary.get(f"{key}_high")
  if low is not None and high is not None:
    text += f" ({show(name, low)} to {show(name, high)})"
  return Row(_label(stage, name), "", text, "", None)


def _label(stage: str, name: str) -> str:
  return f"{_STAGES.get(stage, stage)}: {readable(name)}"
