"""Selects different rows of a batch for each member of an ensemble.

A member trains on a share of the rows. Half of the rows, sampled without
replacement, make the members differ as much as bootstrap samples do, at half
the cost: a bootstrap sample weights its rows so unevenly that it holds as much
information as half of them.

Reference: Friedman and Hall 2007, On bagging and nonlinear estimation, J. Stat.
Plan. Inference 137, section 3.
"""

import numpy as np


class Subsets:
  """Selects the rows of each member in a batch, by seed and row alone.

  Every row has one random number for each member. A member takes the rows of a
  batch with the smallest numbers: the same count in every batch, and nearly the
  same rows in all epochs, since a row's rank in a batch is close to its rank in
  the data.
  """

  def __init__(self, rows: int, *, members: int, share: float, seed: int):
    """Samples the random numbers.

    Args:
      rows: Number of training rows.
      members: Number of members.
      share: Fraction of a batch's rows that each member takes, in (0, 1].
      seed: Seed of the random numbers.
    """
    self.share = share
    generator = np.random.default_rng((seed, members))
    self._numbers = generator.random((members, rows), np.float32)

  def __call__(self, index: np.ndarray) -> np.ndarray:
    """Places in a batch of each member's rows, `[members, C]`, ascending.

    Args:
      index: Position of each row of the batch in the data, `[B]`; C is
        round(share B).
    """
    count = round(self.share * len(index))
    order = np.argsort(self._numbers[:, index], axis=1, kind="stable")
    return np.sort(order[:, :count], axis=1)
