"""What a run achieved, as rows for the terminal table and for the report.

A summary is flat: `<stage>.<name>`, `seconds.<stage>`, `memory.<stage>`. Names
that end in `_before` and `_after` make one row with the change between them,
and so do `evaluate.anchor.<name>` and `evaluate.policy.<name>`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from perl_jax.reporting import numbers, vocabulary

# Results that have no value before the run, by their keys.
_RESULTS = (
  *(f"sft.{name}" for name in vocabulary.CHECKS),
  "reward.accuracy",
  "reward.auroc",
  "reward.calibration_error",
  "reward.trainable_share",
  "evaluate.reward_model.accuracy",
  "evaluate.reward_model.auroc",
  "judge_reward.accuracy",
)
# Of what judges say: those that have an interval.
_WIN_RATES = ("win_rate_ties_half", "win_rate_length_controlled")
# What a policy is compared by, the most telling first.
_COMPARED = (*vocabulary.INDEPENDENT, "reward", "kl")
_ENDS = ("_low", "_high")


class Row(NamedTuple):
  """One line of the results, as text.

  Attributes:
    label: What was measured, and of which model.
    before: The value of the anchor, "" if there is none.
    after: The value of what was trained.
    change: The difference, with its sign.
    better: Whether the change is an improvement; None if it is neither an
      improvement nor the opposite.
  """

  label: str
  before: str
  after: str
  change: str
  better: bool | None


def rows(
  summary: Mapping[str, object], results: Mapping[str, str]
) -> list[Row]:
  """The results that matter, in a fixed order; empty if there are none.

  Args:
    summary: The flat summary of all stages.
    results: {name of a stage: name of what it makes}, in the order of the
      stages.
  """
  found = []
  for stage, result in results.items():
    compared = comparisons(summary, stage)
    names = [name for name in _COMPARED if name in compared]
    # An evaluation, and a judgement that ends a pipeline, repeat what RL has
    # measured on the way.
    repeats = stage == "evaluate" or (stage == "judge" and found)
    if not repeats:
      rest = set(compared) - set(names)
      names += sorted(rest, key=lambda name: (vocabulary.rank_of(name), name))
    for name in names:
      row = _comparison(result, f"{stage}.{name}", *compared[name])
      ends = [summary.get(f"{stage}.{name}{end}_after") for end in _ENDS]
      found.append(row._replace(after=row.after + _between(name, *ends)))
  for key in _RESULTS:
    result = results.get(key.split(".")[0])
    # So does an evaluation of the reward model.
    measured = key.replace("evaluate.reward_model.", "reward.")
    repeated = measured != key and measured in summary
    if result and key in summary and not repeated:
      found.append(_single(result, summary, key))
  for stage, result in results.items():
    found += _judged(stage, result, summary)
  if "seconds.total" in summary:
    total = numbers.duration(summary["seconds.total"])
    found.append(Row("Time", "", total, "", None))
  return found


def _judged(
  stage: str, result: str, summary: Mapping[str, object]
) -> list[Row]:
  """Win rates with their intervals, `<stage>.by.<judge>.win_rate_...`."""
  found = []
  for judge, key in _win_rates(summary, stage):
    row = _single(result, summary, key)
    found.append(row._replace(label=f"{row.label}, by {judge}"))
  return found


def _win_rates(
  summary: Mapping[str, object], stage: str
) -> Iterator[tuple[str, str]]:
  """(judge, key) of each win rate of a stage that has an interval."""
  for key in summary:
    judge = vocabulary.judge_of(key)
    if judge and key.removeprefix(f"{stage}.by.{judge}.") in _WIN_RATES:
      yield judge, key


def comparisons(
  summary: Mapping[str, object], stage: str
) -> dict[str, tuple[object, object]]:
  """What a stage measured of anchor and policy: {name: (before, after)}.

  Spelled `<stage>.<name>_before` and `_after` by a stage that trains, and
  `<stage>.anchor.<name>` and `<stage>.policy.<name>` by an evaluation. The KL
  is there with the one value; before is that of step 0, or None. Ends of
  intervals are left out.
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
    if name.endswith(_ENDS):
      continue
    if before is not None or name == "kl":
      found[name] = (before, after)
  return found


def takeaway(summary: Mapping[str, object], results: Mapping[str, str]) -> str:
  """Whether the policy got better, in words; "" without a policy.

  A sentence on the most telling number, and one for each judge. The arguments
  are those of `rows`.
  """
  said = [_change(summary, results)]
  for stage in results:
    for judge, key in _win_rates(summary, stage):
      is_first = key.endswith(_WIN_RATES[0])
      if is_first and math.isfinite(numbers.number(summary[key])):
        share = _with_interval(summary, key)
        said.append(f"By {judge} it wins {share}, a tie as half.")
  return " ".join(filter(None, said))


def _change(summary: Mapping[str, object], results: Mapping[str, str]) -> str:
  """A sentence on the most telling number before and after; "" without one."""
  for stage in results:
    found = comparisons(summary, stage)
    for name in (*vocabulary.INDEPENDENT, "reward"):
      before, after = map(numbers.number, found.get(name, (None, None)))
      if math.isnan(before) or math.isnan(after):
        continue
      label = vocabulary.label_of(name, stage)
      text = f"{label[0].upper()}{label[1:]} "
      if after == before:
        text += f"stayed at {numbers.show(name, after)}"
      else:
        text += "rose" if after > before else "fell"
        text += f" from {numbers.show(name, before)}"
        text += f" to {numbers.show(name, after)}"
      kl = numbers.number(found.get("kl", (None, None))[1])
      if not math.isnan(kl):
        text += f", at a KL of {kl:.3g} nats to the anchor"
      return text + "."
  return ""


def _comparison(result: str, key: str, before: object, after: object) -> Row:
  a, b = numbers.number(before), numbers.number(after)
  metric = vocabulary.row_of(key)
  change, better = "", None
  if math.isfinite(a) and math.isfinite(b):
    if metric.percent:
      change = f"{100 * (b - a):+.1f} points" if a != b else "0"
    else:
      change = ("+" if b > a else "") + numbers.show(key, b - a)
    if metric.better and a != b:
      better = (b > a) == (metric.better > 0)
  return Row(
    _label(result, key),
    "" if before is None else numbers.show(key, before),
    numbers.show(key, after),
    change,
    better,
  )


def _single(result: str, summary: Mapping[str, object], key: str) -> Row:
  text = _with_interval(summary, key)
  return Row(_label(result, key), "", text, "", None)


def _with_interval(summary: Mapping[str, object], key: str) -> str:
  """A value with its interval in brackets, if it has one."""
  ends = [summary.get(f"{key}{end}") for end in _ENDS]
  return numbers.show(key, summary[key]) + _between(key, *ends)


def _between(key: str, low: object, high: object) -> str:
  """An interval in brackets; "" without one."""
  if math.isnan(numbers.number(low)) or math.isnan(numbers.number(high)):
    return ""
  return f" ({numbers.show(key, low)} to {numbers.show(key, high)})"


def _label(result: str, key: str) -> str:
  return f"{result}: {vocabulary.label_of(key, unit=True)}"
