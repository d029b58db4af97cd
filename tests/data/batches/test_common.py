"""What every kind of batch shares: sizes are checked, buckets are chosen."""

import pytest

from perl_jax.data.batches import common
from perl_jax.data.batches import prompts as prompts_lib


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
