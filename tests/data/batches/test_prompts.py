"""Prompts: padding on the left, and prompts that are too long."""

import pytest

from perl_jax.data import records
from perl_jax.data.batches import prompts
from tests.data.batches import cases


def test_collated_prompts_are_padded_on_the_left():
  batch = prompts.collate_prompts([prompts.EncodedPrompt([1, 2], 3)], 3, 2)
  assert batch.tokens.tolist() == [[0, 1, 2], [0, 0, 0]]
  assert batch.lengths.tolist() == [2, 1]
  assert batch.valid.tolist() == [True, False]
  assert batch.index.tolist() == [3, -1]


def test_prompts_are_cut_before_they_are_left_out(tokenization):
  long = records.Prompt("b", "g", cases.CONTEXT, None)
  cut, counts = prompts.encode_prompts([long], tokenization, 8, "drop")
  assert len(cut) == 1 and counts["cut_tokens"] > 0
  none, counts = prompts.encode_prompts([long], tokenization, 2, "drop")
  assert none == [] and counts["too_long_dropped"] == 1
  with pytest.raises(ValueError, match=r"'keep' is none of .*drop"):
    prompts.encode_prompts([long], tokenization, 8, "keep")


def test_prompts_that_do_not_fit_are_named_or_cut(tokenization):
  prompt = records.Prompt("f.json:8", "g", cases.CONTEXT, None)
  with pytest.raises(ValueError, match=r"f\.json:8: the prompt has .*is 20"):
    prompts.encode_prompts([prompt], tokenization, 20, long="error")
  encoded, counts = prompts.encode_prompts([prompt], tokenization, 8, "cut")
  assert encoded[0].length <= 8 and counts["cut_tokens"] > 0
