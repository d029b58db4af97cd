"""Packing loses no target and joins nothing; padding is by lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl_jax.data import batches, records, text, tokenizer

BOS = 9999


@pytest.fixture(scope="module")
def tokenization(tmp_path_factory):
  path = tmp_path_factory.mktemp("batches") / "tokenizer"
  return text.load_tokenizer(
    tokenizer.train_tokenizer(["hello there, 12 mochas"] * 4, 300, path)
  )


@st.composite
def dialogues(draw):
  """Dialogues whose tokens are all different, so that each can be found."""
  encoded, token = [], 1
  for _ in range(draw(st.integers(1, 6))):
    tokens, mask = [], []
    for _ in range(draw(st.integers(1, 5))):
      for is_target in (False, True):
        count = draw(st.integers(1, 25))
        tokens += range(token, token + count)
        mask += [is_target] * count
        token += count
    encoded.append((tokens, mask))
  return encoded


def _segments(rows):
  """(tokens, positions, targets) of every segment of every row."""
  for row in rows:
    for segment in range(1, row.segments.max() + 1):
      where = np.flatnonzero(row.segments == segment)
      assert (np.diff(where) == 1).all()
      yield row.tokens[where], row.positions[where], row.target_mask[where]


@settings(max_examples=100, deadline=None)
@given(dialogues(), st.integers(8, 60))
def test_packing_has_every_target_once_and_segments_from_one_dialogue(
  encoded, length
):
  rows = batches.pack_dialogues(encoded, length, prefix=(BOS,))
  again = batches.pack_dialogues(encoded, length, prefix=(BOS,))
  np.testing.assert_equal(rows, again)

  dialogue_of = {
    token: i for i, (tokens, _) in enumerate(encoded) for token in tokens
  }
  targets = []
  for tokens, positions, target_mask in _segments(rows):
    assert positions.tolist() == list(range(len(tokens)))
    assert not target_mask[0]
    targets += tokens[target_mask].tolist()
    body = tokens[1:] if tokens[0] == BOS else tokens
    # A contiguous part of one dialogue.
    assert len({dialogue_of[token] for token in body.tolist()}) == 1
    assert (np.diff(body) == 1).all()
    starts_dialogue = body[0] == encoded[dialogue_of[int(body[0])]][0][0]
    assert starts_dialogue == (tokens[0] != BOS)
  expected = [
    token
    for tokens, mask in encoded
    for token, is_target in zip(tokens, mask, strict=True)
    if is_target
  ]
  assert sorted(targets) == expected
  for row in rows:
    padding = row.segments == 0
    assert not row.tokens[padding].any()
    assert not row.positions[padding].any()
    assert not row.target_mask[padding].any()


@settings(max_examples=50, deadline=None)
@given(dialogues(), st.integers(16, 60))
def test_a_target_keeps_the_context_that_fits(encoded, length):
  rows = batches.pack_dialogues(encoded, length)
  mask_of = {
    token: is_target
    for tokens, mask in encoded
    for token, is_target in zip(tokens, mask, strict=True)
  }
  for tokens, _, target_mask in _segments(rows):
    first = int(np.flatnonzero(target_mask)[0])
    begins_inside = tokens[0] - 1 in mask_of and tokens[0] > 1
    is_whole = any(tokens[0] == dialogue[0][0] for dialogue in encoded)
    if is_whole or not begins_inside:
      continue
    # Either a turn has just ended, or half of the row is context.
    turn_ended = mask_of[int(tokens[0]) - 1] and not mask_of[int(tokens[0])]
    assert turn_ended or first >= length // 2


def test_whole_dialogues_are_packed_tightly():
  sizes = [7, 3, 5, 5, 6, 4, 10]
  encoded = [([1] * n, [False] + [True] * (n - 1)) for n in sizes]
  rows = batches.pack_dialogues(encoded, 10)
  assert len(rows) == 4  # sum(sizes) / 10, so nothing is wasted
  assert all((row.segments > 0).all() for row in rows)


def test_packing_refuses_what_has_no_context():
  with pytest.raises(ValueError, match=r"first token.*cannot be a target"):
    batches.pack_dialogues([([1, 2], [True, True])], 10)
  with pytest.raises(ValueError, match="2 tokens has no room"):
    batches.pack_dialogues([([1, 2, 3], [False, True, True])], 2, prefix=(0,))


def test_collated_targets_are_filled_with_padding():
  rows = batches.pack_dialogues([([5, 6, 7], [False, True, True])], 4)
  batch = batches.collate_targets(rows, 4, 2)
  assert batch.tokens.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
  assert batch.target_mask.tolist() == [[False, True, True, False], [False] * 4]
  assert [leaf.dtype for leaf in batch] == [np.int32] * 3 + [np.bool_]
  with pytest.raises(ValueError, match="4 tokens, the batch 8"):
    batches.collate_targets(rows, 8)


def test_collated_preferences():
  rows = [batches.EncodedPreference([1, 2, 3], [1, 4], 17)]
  assert rows[0].length == 3
  batch = batches.collate_preferences(rows, 4, 2, pad_id=8)
  assert batch.chosen_tokens.tolist() == [[1, 2, 3, 8], [8, 8, 8, 8]]
  assert batch.chosen_lengths.tolist() == [3, 1]
  assert batch.rejected_tokens.tolist() == [[1, 4, 8, 8], [8, 8, 8, 8]]
  assert batch.rejected_lengths.tolist() == [2, 1]
  assert batch.valid.tolist() == [True, False]
  assert batch.index.tolist() == [17, -1]


def test_collated_labelled_and_prompts_pad_on_their_side():
  labelled = batches.collate_labelled(
    [batches.EncodedLabelled([1, 2], 1.0, 3)], 3, 2
  )
  assert labelled.tokens.tolist() == [[1, 2, 0], [0, 0, 0]]
  assert labelled.labels.tolist() == [1.0, 0.0]
  assert labelled.labels.dtype == np.float32
  assert labelled.lengths.tolist() == [2, 1]
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
