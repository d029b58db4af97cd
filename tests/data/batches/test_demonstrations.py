"""Rows of packed dialogues: padding, and dialogues without a target."""

import numpy as np
import pytest

from perl_jax.data import records
from perl_jax.data.batches import demonstrations
from tests.data.batches import cases


def test_collated_targets_are_filled_with_padding():
  row = ([5, 6, 7, 0], [0, 1, 2, 0], [1, 1, 1, 0], [False, True, True, False])
  rows = [demonstrations.TargetBatch(*map(np.array, row))]
  batch = demonstrations.collate_targets(rows, 4, 2)
  assert batch.tokens.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
  assert batch.target_mask.tolist() == [[False, True, True, False], [False] * 4]
  assert [leaf.dtype for leaf in batch] == [np.int32] * 3 + [np.bool_]
  with pytest.raises(ValueError, match="4 tokens, the batch 8"):
    demonstrations.collate_targets(rows, 8)


def test_a_dialogue_without_an_assistant_message_is_named(tokenization):
  silent = records.Demonstration("f.json:9", "g", cases.CONTEXT, cases.CONTEXT)
  with pytest.raises(ValueError, match=r"f\.json:9: .*assistant message"):
    demonstrations.encode_demonstrations([silent], tokenization)
