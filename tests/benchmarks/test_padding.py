"""The benchmark of padding: its shares by hand."""

import pytest

from benchmarks import padding
from perl_jax.data.batches.packed_responses import Layout
from perl_jax.data.batches.preferences import EncodedPreference


def test_shares_by_hand():
  """Prompts of 10 tokens with responses of 6 and 4, in buckets of 20."""
  pairs = [
    EncodedPreference([1] * 16, [1] * 10 + [2] * 4, 10, i) for i in range(8)
  ]
  found = padding.shares(
    pairs,
    [16] * 8,
    Layout(responses=2),
    batch_size=4,
    microbatches=2,
    buckets=(20, 64),
  )
  assert found["tokens_padded"] == 40
  assert found["padding_of_padded"] == pytest.approx(1 - 30 / 40)
  # Two pairs of 20 tokens in a row.
  assert found["tokens_packed"] == 20 and found["padding_of_packed"] == 0
  assert found["shapes"] == 1 and found["padding_of_evaluation"] == 0
