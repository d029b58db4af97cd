"""Batches: padding is by lengths, and rows that do not fit are refused."""

import numpy as np
import pytest

from perl_jax.data.batches import common, demonstrations, preferences
from perl_jax.data.batches import labelled as labelled_lib
from perl_jax.data.batches import prompts as prompts_lib


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


def test_collated_preferences():
  rows = [preferences.EncodedPreference([1, 2, 3], [1, 4], 1, 17)]
  assert rows[0].length == 3 and rows[0].response_length == 2
  batch = preferences.collate_preferences(rows, 4, 2, pad_id=8)
  assert batch.chosen_tokens.tolist() == [[1, 2, 3, 8], [8, 8, 8, 8]]
  assert batch.chosen_lengths.tolist() == [3, 1]
  assert batch.rejected_tokens.tolist() == [[1, 4, 8, 8], [8, 8, 8, 8]]
  assert batch.rejected_lengths.tolist() == [2, 1]
  assert batch.prompt_lengths.tolist() == [1, 1]
  assert batch.valid.tolist() == [True, False]
  assert batch.index.tolist() == [17, -1]


def test_collated_labelled_and_prompts_pad_on_their_side():
  labelled = labelled_lib.collate_labelled(
    [labelled_lib.EncodedLabelled([1, 2], 1, 1.0, 3)], 3, 2
  )
  assert labelled.tokens.tolist() == [[1, 2, 0], [0, 0, 0]]
  assert labelled.labels.tolist() == [1.0, 0.0]
  assert labelled.labels.dtype == np.float32
  assert labelled.lengths.tolist() == [2, 1]
  assert labelled.prompt_lengths.tolist() == [1, 1]
  prompts = prompts_lib.collate_prompts(
    [prompts_lib.EncodedPrompt([1, 2], 3)], 3, 2
  )
  assert prompts.tokens.tolist() == [[0, 1, 2], [0, 0, 0]]
  assert prompts.lengths.tolist() == [2, 1]
  assert prompts.valid.tolist() == labelled.valid.tolist() == [True, False]
  assert prompts.index.tolist() == labelled.index.tolist() == [3, -1]


def test_collating_refuses_what_does_not_fit():
  row = prompts_lib.EncodedPrompt([1, 2, 3], 0)
  with pytest.raises(ValueError, match="3 tokens; the batch takes 1 to 2"):
    prompts_lib.collate_prompts([row], 2)
  with pytest.raises(ValueError, match="2 rows do not fit in a batch of 1"):
    prompts_lib.collate_prompts([row, row], 4, 1)


def test_bucket_for_takes_the_smallest_that_holds_it():
  assert common.bucket_for(5, (16, 8)) == 8
  assert common.bucket_for(8, (16, 8)) == 8
  assert common.bucket_for(9, (16, 8)) == 16
  with pytest.raises(ValueError, match=r"17 tokens fits in none.*\[16, 8\]"):
    common.bucket_for(17, (16, 8))
