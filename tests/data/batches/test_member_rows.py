"""Rows of a member's own: how many, which, and always the same."""

import numpy as np

from perl_jax.data.batches import member_rows


def test_a_member_has_rows_of_the_batch():
  pick = member_rows.Subsets(100, members=3, share=0.5, seed=0)
  found = pick(np.arange(40, 56))
  assert found.shape == (3, 8)
  for places in found:
    assert sorted(set(places)) == list(places)  # in order, none twice
    assert set(places) <= set(range(16))
  assert len(set(map(tuple, found))) == 3


def test_a_row_keeps_its_number_wherever_it_is_in_a_batch():
  pick = member_rows.Subsets(100, members=3, share=0.5, seed=0)
  index = np.arange(40, 56)
  for one, other in zip(pick(index), pick(index[::-1]), strict=True):
    assert set(index[one]) == set(index[::-1][other])


def test_the_share_is_that_of_the_batch():
  for share, count in ((1.0, 16), (0.5, 8), (0.3, 5)):
    pick = member_rows.Subsets(16, members=2, share=share, seed=0)
    assert pick(np.arange(16)).shape == (2, count)


def test_a_member_meets_nearly_the_same_rows_in_every_epoch():
  """Batches differ between epochs; half of the rows stay a member's own."""
  pick = member_rows.Subsets(512, members=2, share=0.5, seed=3)
  rng = np.random.default_rng(0)
  seen = np.zeros((2, 512))
  for _ in range(10):
    for index in rng.permutation(512).reshape(16, 32):
      for k, places in enumerate(pick(index)):
        seen[k, index[places]] += 1
  assert seen.sum() == 2 * 10 * 256
  # Rows that come by chance alone would lie at 5 of 10, give or take 1.6.
  always_or_never = np.mean((seen <= 1) | (seen >= 9))
  assert always_or_never > 0.75
  # Two members have no more in common than two draws of a half.
  assert abs(np.corrcoef(seen)[0, 1]) < 0.2


def test_it_follows_the_seed():
  one, same, other = (
    member_rows.Subsets(16, members=2, share=0.5, seed=seed)(np.arange(16))
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)
