"""The benchmark of an ensemble's cost: that it measures both sides."""

import pytest

from benchmarks import reward_ensemble


@pytest.mark.nightly
def test_both_sides_are_measured_on_the_same_batches():
  found = reward_ensemble.run(members=2, count=2, microbatches=8, share=0.5)
  one, two = found[1], found[2]
  assert two["trained"] == 2 * one["trained"]
  assert len(one["seconds"]) == len(two["seconds"]) == 2
  assert min(one["seconds"] + two["seconds"]) > 0
  assert two["peak_bytes"] > one["peak_bytes"] > 0
