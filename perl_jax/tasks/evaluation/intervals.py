"""Intervals of means over prompts, by resampling the prompts."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

SAMPLES = 1000

# Mean of each stratum, `[k]`, by its name, to numbers by name.
Statistics = Callable[[Mapping[str, np.ndarray]], dict[str, float]]


class Estimate(NamedTuple):
  """A number with its 95 % interval.

  Attributes:
    value: The number.
    low: Lower end of the interval.
    high: Upper end of the interval.
  """

  value: float
  low: float
  high: float

  def named(self, name: str) -> dict[str, float]:
    """The three as metrics: NAME, NAME_low and NAME_high."""
    return {
      name: self.value,
      f"{name}_low": self.low,
      f"{name}_high": self.high,
    }


def resampled(
  strata: Mapping[str, np.ndarray],
  statistics: Statistics,
  *,
  samples: int = SAMPLES,
  seed: int = 0,
) -> dict[str, Estimate]:
  """Statistics of the means of strata, with 95 % percentile intervals.

  Each resample draws as many prompts of every stratum as it has, with
  replacement. The comparisons of one prompt stay together, since they share
  responses.

  Args:
    strata: What was measured of each prompt of a stratum, `[n, k]`.
    statistics: Function of the strata's means.
    samples: Number of resamples.
    seed: Seed of the resampling; the same seed gives the same intervals.
  """
  generator = np.random.default_rng(seed)
  values = {name: np.asarray(rows, float) for name, rows in strata.items()}
  exact = statistics({name: rows.mean(axis=0) for name, rows in values.items()})
  drawn: dict[str, list[float]] = {name: [] for name in exact}
  for _ in range(samples):
    means = {
      name: rows[generator.integers(len(rows), size=len(rows))].mean(axis=0)
      for name, rows in values.items()
    }
    for name, value in statistics(means).items():
      drawn[name].append(value)
  return {
    name: Estimate(
      float(value), *map(float, np.quantile(drawn[name], [0.025, 0.975]))
    )
    for name, value in exact.items()
  }
