"""Rows of tokens keep both ends of a record; padding is by lengths."""

import numpy as np
import pytest

from perl_jax.data import batches, records, text, tokenizer


@pytest.fixture(scope="module")
def tokenization(tmp_path_factory):
  path = tmp_path_factory.mktemp("batches") / "tokenizer"
  return text.load_tokenizer(
    tokenizer.train_tokenizer(["hello there, 12 mochas"] * 4, 300, path)
  )


def test_collated_targets_are_filled_with_padding():
  row = ([5, 6, 7, 0], [0, 1, 2, 0], [1, 1, 1, 0], [False, True, True, False])
  rows = [batches.TargetBatch(*map(np.array, row))]
  batch = batches.collate_targets(rows, 4, 2)
  assert batch.tokens.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
  assert batch.target_mask.tolist() == [[False, True, True, False], [False] * 4]
  assert [leaf.dtype for leaf in batch] == [np.int32] * 3 + [np.bool_]
  with pytest.raises(ValueError, match="4 tokens, the batch 8"):
    batches.collate_targets(rows, 8)


def test_collated_preferences():
  rows = [batches.EncodedPreference([1, 2, 3], [1, 4], 1, 17)]
  assert rows[0].length == 3 and rows[0].response_length == 2
  batch = batches.collate_preferences(rows, 4, 2, pad_id=8)
  assert batch.chosen_tokens.tolist() == [[1, 2, 3, 8], [8, 8, 8, 8]]
  assert batch.chosen_lengths.tolist() == [3, 1]
  assert batch.rejected_tokens.tolist() == [[1, 4, 8, 8], [8, 8, 8, 8]]
  assert batch.rejected_lengths.tolist() == [2, 1]
  assert batch.prompt_lengths.tolist() == [1, 1]
  assert batch.valid.tolist() == [True, False]
  assert batch.index.tolist() == [17, -1]


def test_collated_labelled_and_prompts_pad_on_their_side():
  labelled = batches.collate_labelled(
    [batches.EncodedLabelled([1, 2], 1, 1.0, 3)], 3, 2
  )
  assert labelled.tokens.tolist() == [[1, 2, 0], [0, 0, 0]]
  assert labelled.labels.tolist() == [1.0, 0.0]
  assert labelled.labels.dtype == np.float32
  assert labelled.lengths.tolist() == [2, 1]
  assert labelled.prompt_lengths.tolist() == [1, 1]
  prompts = batches.collate_prompts([batches.EncodedPrompt([1, 2], 3)], 3, 2)
  assert prompts.tokens.tolist() == [[0, 1, 2], [0, 0, 0]]
  assert prompts.lengths.tolist() == [2, 1]
  assert prompts.valid.tolist() == labelled.valid.tolist() == [True, False]
  assert prompts.index.tolist() == labelled.index.tolist() == [3, -1]


def test_collating_refuses_what_does_not_fit():
  row = batches.EncodedPrompt([1, 2, 3], 0)
  with pytest.raises(ValueError, match="3 tokens; the batch takes 1 to 2"):
    batches.collate_prompts([row], 2)
  with pytest.raises(ValueError, match="2 rows do not fit in a batch of 1"):
    batches.collate_prompts([row, row], 4, 1)


def test_bucket_for_takes_the_smallest_that_holds_it():
  assert batches.bucket_for(5, (16, 8)) == 8
  assert batches.bucket_for(8, (16, 8)) == 8
  assert batches.bucket_for(9, (16, 8)) == 16
  with pytest.raises(ValueError, match=r"17 tokens fits in none.*\[16, 8\]"):
    batches.bucket_for(17, (16, 8))


# Records.

CONTEXT = tuple(
  {"role": "user", "content": f"hello there, {i} mochas"} for i in range(4)
)


def test_both_responses_follow_the_same_shortened_prompt(tokenization):
  row = records.Preference("a:1", "g", CONTEXT, "hello there", "12")
  whole, counts = batches.encode_preferences([row], tokenization, 500)
  assert counts == {"truncated_rows": 0, "dropped_turns": 0, "cut_tokens": 0}
  chosen = tokenization.encode_response((), "hello there")
  rejected = tokenization.encode_response((), "12")
  prompt, _ = tokenization.encode_prompt(CONTEXT)
  assert whole == [(prompt + chosen, prompt + rejected, 0)]

  (short,), counts = batches.encode_preferences(
    [row], tokenization, whole[0].length - 1
  )
  prompt, _ = tokenization.encode_prompt(CONTEXT[1:])
  assert short == (prompt + chosen, prompt + rejected, 0)
  assert counts == {"truncated_rows": 1, "dropped_turns": 1, "cut_tokens": 0}


def test_labelled_rows_end_with_the_stop_token(tokenization):
  rows = [records.Labelled(str(i), "g", CONTEXT[:1], "", 1.0) for i in range(2)]
  encoded, _ = batches.encode_labelled(rows, tokenization, 100)
  prompt, _ = tokenization.encode_prompt(CONTEXT[:1])
  assert encoded[1] == ([*prompt, tokenization.stop_ids[0]], 1.0, 1)


def test_rows_that_do_not_fit_are_named(tokenization):
  labelled = records.Labelled("f.json:7", "g", CONTEXT, "hello " * 30, 0.0)
  with pytest.raises(ValueError, match=r"f\.json:7: A response has \d+ tokens"):
    batches.encode_labelled([labelled], tokenization, 20)
  prompt = records.Prompt("f.json:8", "g", CONTEXT, None)
  with pytest.raises(ValueError, match=r"f\.json:8: The prompt has .*is 20"):
    batches.encode_prompts([prompt], tokenization, 20, long="error")
  encoded, counts = batches.encode_prompts([prompt], tokenization, 8, "cut")
  assert encoded[0].length <= 8 and counts["cut_tokens"] > 0
  silent = records.Demonstration("f.json:9", "g", CONTEXT, CONTEXT)
  with pytest.raises(ValueError, match=r"f\.json:9: .*assistant message"):
    batches.encode_demonstrations([silent], tokenization)
