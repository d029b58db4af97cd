"""Rows of its own for each member of an ensemble, out of batches of all.

A member trains on a share of the rows. Half of them, drawn without replacement,
vary what is learnt as a bootstrap sample does, at half the cost: a bootstrap
sample weighs its rows so unevenly that it is worth no more than half of them.

Reference: Friedman and Hall 2007, On bagging and nonlinear estimation, J. Stat.
Plan. Inference 137, section 3.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np

Batch = TypeVar("Batch", bound=NamedTuple)


class Subsets:
  """Picks the rows of each member in a batch; a function of seed and row.

  Every row has a number of its own for each member, drawn once. Of a batch a
  member takes the rows with the smallest: always as many, and in all epochs
  nearly the same, since a row's rank in a batch is nearly its rank in the data.
  """

  def __init__(self, rows: int, *, members: int, share: float, seed: int):
    """Draws the numbers.

    Args:
      rows: Training rows that the `index` of a batch points into.
      members: How many share them.
      share: Of a batch's rows that each takes, in (0, 1].
      seed: Of the draw.
    """
    self.share = share
    generator = np.random.default_rng((seed, members))
    self._numbers = generator.random((members, rows), np.float32)

  def __call__(self, batch: Batch) -> Batch:
    """The batch with leaves `[C, members, ...]`, C = round(share B).

    Rows stay in their order. Axis 0 is that of rows, as in any batch, so that a
    mesh splits it.
    """
    count = round(self.share * len(batch.index))
    numbers = np.where(batch.valid, self._numbers[:, batch.index], np.inf)
    order = np.argsort(numbers, axis=1, kind="stable")[:, :count]
    chosen = np.sort(order, axis=1).T

    def take(leaf: Any) -> Any:
      return leaf[chosen]

    return type(batch)(*map(take, batch))
