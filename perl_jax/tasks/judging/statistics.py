"""Win rates with intervals, without the effect of length; agreement of judges.

A verdict is 1 for the policy, -1 for what it is compared with, 0 for a tie and
nan where the judge gave none. Host code: NumPy arrays in, floats out.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

WIN, TIE, LOSS, NONE = 1.0, 0.0, -1.0, math.nan
# Newton's method on a strictly convex function of two variables.
_MOST_STEPS, _LARGEST_STEP, _SMALL = 100, 2.0, 1e-10
# Draws of the bootstrap are computed in parts of so many numbers.
_PART = 2**21


class Bootstrap(NamedTuple):
  """How intervals are made.

  Attributes:
    draws: Number of resamples of the prompts, with replacement.
    seed: Seed of the draws; the same seed gives the same interval.
  """

  draws: int
  seed: int


def outcomes(verdicts: np.ndarray) -> np.ndarray:
  """One outcome for each pair that was judged in both orders, `[n]`.

  A win must hold in both orders, a loss too; everything else is a tie (PERL,
  arXiv:2403.10704). Where an order has no verdict, the pair has none.

  Args:
    verdicts: Verdicts, `[n, 2]`: with the policy's response shown first, and
      with the other one first.
  """
  verdicts = np.asarray(verdicts, np.float64)
  both = np.where(verdicts[:, 0] == verdicts[:, 1], verdicts[:, 0], TIE)
  return np.where(np.isnan(verdicts).any(axis=1), NONE, both)


def rates(
  verdicts: np.ndarray, differences: np.ndarray, bootstrap: Bootstrap
) -> dict[str, float]:
  """What one judge said, in numbers; nan without a single outcome.

  Args:
    verdicts: Verdicts in both orders, `[n, 2]`, see `outcomes`.
    differences: Length of the policy's response less that of the other one,
      `[n]`, in any unit.
    bootstrap: How intervals are made.

  Returns:
    `judged`, the number of pairs with an outcome; over these `win_rate`,
    `tie_rate` and `loss_rate`; `win_rate_ties_half` = wins + ties / 2, and
    `win_rate_length_controlled`, see there; the three win rates with the 2.5%
    and 97.5% quantiles over the resamples (`_low`, `_high`); `consistency`, the
    share of pairs with the same verdict in both orders; `first_rate`, the share
    of verdicts for the response that was shown first, of those that are no tie.
  """
  verdicts = np.asarray(verdicts, np.float64)
  found = outcomes(verdicts)
  known = ~np.isnan(found)
  found, verdicts = found[known], verdicts[known]
  differences = np.asarray(differences, np.float64)[known]
  count = found.size
  halves = (found + 1) / 2
  raw = halves.mean() if count else NONE
  numbers = {
    "judged": count,
    "win_rate": _share(found == WIN),
    "tie_rate": _share(found == TIE),
    "loss_rate": _share(found == LOSS),
    "win_rate_ties_half": float(raw),
    "win_rate_length_controlled": NONE,
  }
  if count:
    controlled = length_controlled(halves, differences)
    numbers["win_rate_length_controlled"] = float(controlled[0])
  numbers |= _intervals(halves, differences, bootstrap)
  first = np.concatenate([verdicts[:, 0], -verdicts[:, 1]])
  return numbers | {
    "consistency": _share(verdicts[:, 0] == verdicts[:, 1]),
    "first_rate": _share(first[first != TIE] == WIN),
  }


def _share(where: np.ndarray) -> float:
  return float(where.mean()) if where.size else NONE


def _intervals(
  halves: np.ndarray, differences: np.ndarray, bootstrap: Bootstrap
) -> dict[str, float]:
  names = ("win_rate", "win_rate_ties_half", "win_rate_length_controlled")
  drawn = np.full((3, bootstrap.draws), NONE)
  done = 0
  for counts in resamples(halves.size, bootstrap) if halves.size else ():
    place = slice(done, done + len(counts))
    drawn[0, place] = counts @ (halves == 1.0) / halves.size
    drawn[1, place] = counts @ halves / halves.size
    drawn[2, place] = length_controlled(halves, differences, counts)
    done = place.stop
  found = {}
  for name, row in zip(names, drawn, strict=True):
    row = row[~np.isnan(row)]
    ends = np.quantile(row, [0.025, 0.975]) if row.size else (NONE, NONE)
    found |= {f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}
  return found


def resamples(count: int, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
  """How often each row is drawn, `[draws, count]`, in parts.

  Each draw is `count` rows with replacement, from NumPy's default generator.
  """
  generator = np.random.default_rng(bootstrap.seed)
  size = max(1, _PART // count)
  for start in range(0, bootstrap.draws, size):
    draws = min(size, bootstrap.draws - start)
    rows = generator.integers(count, size=(draws, count))
    counts = np.zeros((draws, count))
    np.add.at(counts, (np.arange(draws)[:, None], rows), 1.0)
    yield counts


def length_controlled(
  halves: np.ndarray,
  differences: np.ndarray,
  weights: np.ndarray | None = None,
) -> np.ndarray:
  """Win rates as if both responses were equally long, ties counting half.

  A logistic regression of the outcomes on the difference of the lengths,

    P(policy wins) = sigmoid(theta + phi x),  x = tanh(d / std(d)),

  is fitted by maximum likelihood, a tie being half a win and half a loss, less
  phi^2 / 2 (without which there is no maximum where length alone decides).
  With the effect of length set to zero the win rate is sigmoid(theta).

  It is that of AlpacaEval 2 without its term for how difficult an instruction
  is, which takes the outcomes of many models.

  Args:
    halves: 1 for a win, 1/2 for a tie, 0 for a loss, `[n]`.
    differences: Length of the policy's response less that of the other one,
      `[n]`.
    weights: How often each row counts, `[draws, n]`; None for once.

  Returns:
    Win rates, `[draws]`. nan where all differences are one and the same, not
    0: what the policy and what its length does cannot be told apart.

  Reference: Dubois et al. 2024, arXiv:2404.04475, section 3.
  """
  weights = np.ones((1, halves.size)) if weights is None else weights
  scale = differences.std()
  if scale == 0 and differences.any():
    return np.full(len(weights), NONE)
  x = np.tanh(differences / scale) if scale else np.zeros_like(differences)
  means = weights @ halves / weights.sum(axis=1)
  found = np.where(means == 1.0, 1.0, 0.0)
  mixed = (means > 0) & (means < 1)
  if mixed.any():
    found[mixed] = special.expit(_fit(halves, x, weights[mixed]))
  return found


def _fit(halves: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """theta of the regression of `length_controlled` for each row of weights.

  Newton's method from (logit of the mean, 0), with limited steps.
  """
  theta = special.logit(weights @ halves / weights.sum(axis=1))
  phi = np.zeros_like(theta)
  for _ in range(_MOST_STEPS):
    p = special.expit(theta[:, None] + phi[:, None] * x)
    error = weights * (p - halves)
    curve = weights * p * (1 - p)
    gradient = error.sum(axis=1), error @ x + phi
    a, b, c = curve.sum(axis=1), curve @ x, curve @ x**2 + 1.0
    determinant = a * c - b * b
    steps = np.array(
      [
        (c * gradient[0] - b * gradient[1]) / determinant,
        (a * gradient[1] - b * gradient[0]) / determinant,
      ]
    ).clip(-_LARGEST_STEP, _LARGEST_STEP)
    theta, phi = theta - steps[0], phi - steps[1]
    if np.abs(steps).max() < _SMALL:
      return theta
  raise AssertionError("the logistic regression has not converged")


def agreement(first: np.ndarray, second: np.ndarray) -> Mapping[str, float]:
  """How far two judges say the same of the pairs that both have judged.

  Args:
    first: Outcomes of one judge, `[n]`, see `outcomes`.
    second: Outcomes of the other one, `[n]`.

  Returns:
    `agreement`, the share of pairs with the same outcome (win, tie or loss);
    `kappa` = (agreement - e) / (1 - e), with the share e that two judges with
    these numbers of wins, ties and losses would agree on by chance; nan where
    e is 1. And `judged`, the number of pairs.

  Reference: Cohen 1960, Educ. Psychol. Meas. 20, p. 37.
  """
  both = ~(np.isnan(first) | np.isnan(second))
  first, second = first[both], second[both]
  same = _share(first == second)
  chance = sum(
    _share(first == kind) * _share(second == kind) for kind in (WIN, TIE, LOSS)
  )
  kappa = (same - chance) / (1 - chance) if chance < 1 else NONE
  return {"agreement": same, "kappa": kappa, "judged": int(both.sum())}
