"""Rows of a member's own: how many, which, and always the same."""

import numpy as np

from perl_jax.data.batches import labelled, member_rows


def batch_of(index, valid=None):
  index = np.asarray(index, np.int32)
  n = len(index)
  return labelled.LabelledBatch(
    tokens=np.stack([index * 10 + t for t in range(3)], axis=1),
    lengths=index + 1,
    prompt_lengths=np.ones(n, np.int32),
    labels=(index % 2).astype(np.float32),
    valid=np.ones(n, bool) if valid is None else np.asarray(valid),
    index=index,
  )


def test_a_member_has_whole_rows_of_the_batch():
  pick = member_rows.Subsets(100, members=3, share=0.5, seed=0)
  found = pick(batch_of(range(40, 56)))
  assert found.index.shape == found.valid.shape == (8, 3)
  assert found.tokens.shape == (8, 3, 3)
  for k in range(3):
    index = found.index[:, k]
    assert sorted(set(index)) == list(index)  # in order, none twice
    assert set(index) <= set(range(40, 56))
    expected = batch_of(index)
    for leaf, other in zip(found, expected, strict=True):
      np.testing.assert_array_equal(leaf[:, k], other)
  assert len({tuple(found.index[:, k]) for k in range(3)}) == 3


def test_the_share_is_that_of_the_batch():
  whole = batch_of(range(16))
  for share, count in ((1.0, 16), (0.5, 8), (0.3, 5)):
    pick = member_rows.Subsets(16, members=2, share=share, seed=0)
    assert pick(whole).index.shape == (count, 2)


def test_rows_that_fill_up_come_last():
  pick = member_rows.Subsets(16, members=2, share=0.5, seed=0)
  found = pick(batch_of([*range(4), -1, -1, -1, -1], [True] * 4 + [False] * 4))
  assert found.valid.all()


def test_a_member_meets_nearly_the_same_rows_in_every_epoch():
  """Batches differ between epochs; half of the rows stay a member's own."""
  pick = member_rows.Subsets(512, members=2, share=0.5, seed=3)
  rng = np.random.default_rng(0)
  seen = np.zeros((2, 512))
  for _ in range(10):
    for index in rng.permutation(512).reshape(16, 32):
      found = pick(batch_of(index))
      for k in range(2):
        seen[k, found.index[:, k]] += 1
  assert seen.sum() == 2 * 10 * 256
  # Rows that come by chance alone would lie at 5 of 10, give or take 1.6.
  always_or_never = np.mean((seen <= 1) | (seen >= 9))
  assert always_or_never > 0.75
  # Two members have no more in common than two draws of a half.
  assert abs(np.corrcoef(seen)[0, 1]) < 0.2


def test_it_follows_the_seed():
  batch = batch_of(range(16))
  one, same, other = (
    member_rows.Subsets(16, members=2, share=0.5, seed=seed)(batch).index
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)
