"""Signs that a policy gets worse while its reward gets better.

They are read from the lines of metrics.jsonl: a run logs them at each
evaluation, and a report shows those of the last one. The reward itself cannot
show them: a policy that exploits its reward model has a good one.

Limits are for "has gone wrong", not for "has changed".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from perl_jax.reporting import vocabulary

# Nats a response, and a token: long responses may have more of the first.
MOST_KL, MOST_KL_PER_TOKEN = 10.0, 0.1
# Mean length over that of the anchor, either way, and at least so many tokens.
MOST_GROWTH, LEAST_TOKENS = 2.0, 4.0
# How much of the 4-grams, or of the responses, may change for the worse.
MOST_REPETITION, MOST_CUT = 0.2, 0.25
# Or how many times less often, and so much, where most did not end before.
FEWER_ENDS, LEAST_CUT = 4.0, 0.1
# How far a win rate may fall: standard errors of the difference, and itself,
# as a few lost pairs among many ties are no noise, and no sign either.
LOST_ERRORS, MOST_LOST = 3.0, 0.05
# Lines over which the explained variance is averaged, and the first step that
# counts: a value model begins with knowing nothing.
VALUE_LINES, VALUE_STEP = 5, 10
# Where it is as low as that, fewer lines tell.
HOPELESS, HOPELESS_LINES = -0.5, 2


class Diagnostic(NamedTuple):
  """Something that a policy should not do.

  Attributes:
    kind: Name of the metric that shows it, such as "kl".
    text: What was seen, what it means, and what to try.
  """

  kind: str
  text: str


def of(
  rows: Sequence[Mapping[str, Any]], evaluated: int | None = None
) -> list[Diagnostic]:
  """What is wrong with a policy at the last evaluation of a run.

  The first evaluation, before any update, is that of the anchor.

    kl                  above `MOST_KL` nats a response and `MOST_KL_PER_TOKEN`
    length              `MOST_GROWTH` times that of the anchor, or its inverse
    repetition          `MOST_REPETITION` above that of the anchor
    stop_rate           `MOST_CUT` below that of the anchor; or `LEAST_CUT`, and
                        less than a share of 1 / `FEWER_ENDS` of it is left
    explained_variance  below 0 in the mean of the last `VALUE_LINES` lines, or
                        below `HOPELESS` in that of `HOPELESS_LINES`
    a check, "gold"     the reward is above that of the anchor, and the share of
                        right responses below it by two standard errors,
                        2 sqrt((p (1 - p) + q (1 - q)) / n)
    win_rate            since an earlier evaluation, be it the anchor's own, the
                        reward has risen, and the judge's win rate has fallen by
                        more than `MOST_LOST` and `LOST_ERRORS` standard errors
                        of the difference, sqrt(s^2 + t^2), s and t being the
                        95 % intervals' half widths / 1.96. Noise does that once
                        in 740 comparisons of independent prompts; of the same
                        prompts less often

  Args:
    rows: Lines of the run's metrics.jsonl, in order.
    evaluated: n, the responses of an evaluation; None leaves checks out.
  """
  evaluations = [_named(row, "validation/") for row in rows]
  evaluations = [found for found in evaluations if "kl" in found]
  found = []
  if len(evaluations) > 1:
    before, now = evaluations[0], evaluations[-1]
    found += [*_kl(now), *_shape(before, now), *_judge(evaluations)]
    if evaluated:
      found += _checks(before, now, evaluated)
  return found + _value(rows)


def _named(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
  return {
    key.removeprefix(prefix): float(value)
    for key, value in row.items()
    if key.startswith(prefix)
  }


def _kl(now: Mapping[str, float]) -> list[Diagnostic]:
  kl, per_token = now["kl"], now.get("kl_per_token", math.inf)
  if not (kl > MOST_KL and per_token > MOST_KL_PER_TOKEN):
    return []
  text = (
    f"The KL to the anchor is {kl:.1f} nats a response: the policy writes what"
    " the anchor hardly ever would, and no reward model was trained on it."
    " Raise beta, lower optimizer.learning_rate, or take an earlier checkpoint."
  )
  return [Diagnostic("kl", text)]


def _shape(
  before: Mapping[str, float], now: Mapping[str, float]
) -> list[Diagnostic]:
  """What can be seen of responses without reading them."""
  found = []
  old, new = (float(x.get("length", math.nan)) for x in (before, now))
  grown = max(old, new) > MOST_GROWTH * min(old, new)
  if grown and abs(new - old) >= LEAST_TOKENS:
    text = (
      f"Responses have {new:.1f} tokens, those of the anchor {old:.1f}: the"
      " reward may be one for the length. Read samples.jsonl, and compare the"
      " reward of short and long rows of the preference data."
    )
    found.append(Diagnostic("length", text))
  old, new = (float(x.get("repetition", math.nan)) for x in (before, now))
  if new > old + MOST_REPETITION:
    text = (
      f"{new:.0%} of the 4-grams of a response repeat one before, {old:.0%} in"
      " those of the anchor: read samples.jsonl, and raise beta."
    )
    found.append(Diagnostic("repetition", text))
  old, new = (float(x.get("stop_rate", math.nan)) for x in (before, now))
  if new < old - MOST_CUT or new < min(old - LEAST_CUT, old / FEWER_ENDS):
    text = (
      f"{new:.0%} of the responses end before data.response_len, {old:.0%} of"
      " those of the anchor: the rest is cut off. Raise unstopped_penalty."
    )
    found.append(Diagnostic("stop_rate", text))
  return found


def _checks(
  before: Mapping[str, float], now: Mapping[str, float], n: int
) -> list[Diagnostic]:
  found = []
  rises = now.get("reward", -math.inf) > before.get("reward", math.inf)
  for name in vocabulary.CHECKS:
    p, q = before.get(name, math.nan), now.get(name, math.nan)
    error = math.sqrt(max(p * (1 - p) + q * (1 - q), 0.0) / n)
    if rises and q < p - 2 * error:
      text = (
        f"{vocabulary.label_of(name).capitalize()} fell from {p:.1%} to"
        f" {q:.1%} while the reward rose from {before['reward']:.3g} to"
        f" {now['reward']:.3g}: the policy exploits the reward. Raise beta, or"
        " take an earlier checkpoint."
      )
      found.append(Diagnostic(name, text))
  return found


def _judge(evaluations: Sequence[Mapping[str, float]]) -> list[Diagnostic]:
  now = evaluations[-1]
  better = [
    before
    for before in evaluations[:-1]
    if before.get("reward", math.inf) < now.get("reward", -math.inf)
    and before.get("win_rate", -math.inf) - now.get("win_rate", math.inf)
    > max(MOST_LOST, LOST_ERRORS * math.hypot(_error(before), _error(now)))
  ]
  if not better:
    return []
  best = max(better, key=lambda found: found["win_rate"])
  text = (
    f"The judge's win rate against the anchor fell from {best['win_rate']:.1%}"
    f" to {now['win_rate']:.1%} while the reward rose from"
    f" {best['reward']:.3g} to {now['reward']:.3g}: the policy exploits the"
    " reward. Raise beta, or keep the checkpoint that the judge prefers:"
    " --config.best=judge."
  )
  return [Diagnostic("win_rate", text)]


def _error(evaluated: Mapping[str, float]) -> float:
  """Standard error of a win rate, from its interval; nan without one."""
  low, high = (
    evaluated.get(f"win_rate_{end}", math.nan) for end in ("low", "high")
  )
  return (high - low) / 2 / 1.96


def _value(rows: Sequence[Mapping[str, Any]]) -> list[Diagnostic]:
  seen = [
    float(row["train/explained_variance"])
    for row in rows
    if row.get("step", 0) >= VALUE_STEP and "train/explained_variance" in row
  ]
  for count, most in ((VALUE_LINES, 0.0), (HOPELESS_LINES, HOPELESS)):
    mean = sum(seen[-count:]) / count
    if len(seen) >= count and mean < most:
      break
  else:
    return []
  text = (
    "The value model explains less than nothing of the returns (explained"
    f" variance {mean:.2g}): as a baseline it adds noise. Lower"
    " value.learning_rate, or take an estimator without a value model, such as"
    " rloo with samples_per_prompt=4."
  )
  return [Diagnostic("explained_variance", text)]
