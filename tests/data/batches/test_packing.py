"""Packing loses no target and joins nothing."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl_jax.data.batches import packing

BOS = 9999


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
  rows = packing.pack_dialogues(encoded, length, prefix=(BOS,))
  again = packing.pack_dialogues(encoded, length, prefix=(BOS,))
  np.testing.assert_equal(list(rows), list(again))

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
  rows = packing.pack_dialogues(encoded, length)
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
  rows = packing.pack_dialogues(encoded, 10)
  assert len(rows) == 4  # sum(sizes) / 10, so nothing is wasted
  assert all((row.segments > 0).all() for row in rows)


def test_packing_refuses_what_has_no_context():
  with pytest.raises(ValueError, match=r"first token.*cannot be a target"):
    packing.pack_dialogues([([1, 2], [True, True])], 10)
  with pytest.raises(ValueError, match="2 tokens has no room"):
    packing.pack_dialogues([([1, 2, 3], [False, True, True])], 2, prefix=(0,))


def test_packed_rows_hold_no_token_again():
  """They are views of the dialogues: a row of its own has 13 bytes a token."""
  mask = np.arange(5000) % 500 >= 250
  encoded = [(np.arange(5000, dtype=np.int32), mask) for _ in range(20)]
  tracemalloc.start()
  rows = packing.pack_dialogues(encoded, 2048)
  held, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  tokens = sum(row.tokens.size for row in rows)
  assert tokens >= 100_000
  assert held < 2 * tokens  # 1 of the masks of windows, and what holds them
