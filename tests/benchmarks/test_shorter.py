"""Responses that grow shorter: what is computed of them, in every arm."""

import numpy as np
import pytest

from benchmarks import shorter

SMALL = shorter.Settings(
  prompts=8, group=1, prompt=6, response=32, microbatches=4, iterations=2
)


def test_columns_by_hand():
  lengths = np.array([[3], [30], [9], [2], [8], [17], [1], [16]])
  # Sorted in pairs: 30 and 17, 16 and 9, 8 and 3, 2 and 1.
  assert shorter.computed(lengths, SMALL, (8, 16, 32)) == {
    "full": 8 * 38,
    "bucket": 8 * 38,
    "by length": 2 * 38 + 2 * 22 + 4 * 14,
  }


def test_lengths_fall():
  settings = shorter.Settings(iterations=5)
  means = [shorter.lengths_of(settings, i).mean() for i in range(5)]
  assert means[0] > 2 * means[-1] and means == sorted(means, reverse=True)


@pytest.mark.nightly
def test_all_arms_learn_the_same():
  rows = list(shorter.measure(SMALL))
  for row in rows:
    plain = row["loss"]["full"]
    for name in shorter.ARMS:
      assert row["loss"][name] == pytest.approx(plain, rel=1e-3, abs=1e-5)
  assert len(list(shorter.table(rows))) == 4
