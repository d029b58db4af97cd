"""Prompts with responses in rows: where each token is, by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perl_jax.data.batches import row_plans
from perl_jax.data.batches.labelled import EncodedLabelled
from perl_jax.data.batches.packed_responses import Layout, unpack
from perl_jax.data.batches.preferences import EncodedPreference
from perl_jax.segments import PREFIX

PAIRS = [
  EncodedPreference([11, 12, 21, 22], [11, 12, 31], 2, 40),
  EncodedPreference([13, 23], [13, 33, 34], 1, 41),
]


def test_two_pairs_in_a_row():
  batch = Layout(responses=2, targets=True, pad_id=9).pack(
    PAIRS, [[0, 1], []], room=3
  )
  assert batch.tokens.shape == (2, 16)
  assert batch.tokens[0].tolist() == [
    *(11, 12, 21, 22, 31), *(13, 23, 33, 34), *[9] * 7
  ]  # fmt: skip
  assert batch.positions[0].tolist() == [
    *(0, 1, 2, 3, 2), *(0, 1, 1, 2), *[0] * 7
  ]  # fmt: skip
  one, two = PREFIX, 2 * PREFIX
  assert batch.segments[0].tolist() == [
    *(one, one, one + 1, one + 1, one + 2),
    *(two, two + 1, two + 2, two + 2),
    *[0] * 7,
  ]
  assert batch.last[0].tolist() == [[3, 4], [6, 8], [0, 0]]
  assert batch.counts[0].tolist() == [[2, 1], [1, 2], [0, 0]]
  assert batch.targets[0].tolist() == [2, 3, 4, 6, 7, 8, 0, 0]
  assert batch.before[0].tolist() == [1, 2, 1, 5, 5, 7, 0, 0]
  assert batch.offsets[0].tolist() == [[0, 2], [3, 4], [0, 0]]
  assert batch.valid.tolist() == [[True, True, False], [False] * 3]
  assert batch.index.tolist() == [[40, 41, -1], [-1] * 3]
  assert (batch.tokens[1] == 9).all() and not batch.segments[1].any()
  assert batch.num_tokens == 9


def test_a_copy_of_the_prompt_for_each_response():
  layout = Layout(responses=2, shared=False, targets=True, block=128)
  batch = layout.pack(PAIRS[:1], [[0]], room=2)
  assert layout.length(PAIRS[0]) == 7 and batch.tokens.shape == (1, 128)
  assert batch.tokens[0, :8].tolist() == [11, 12, 21, 22, 11, 12, 31, 0]
  assert batch.positions[0, :8].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
  assert batch.segments[0, :8].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
  assert batch.last[0, 0].tolist() == [3, 6]
  assert batch.before[0, :3].tolist() == [1, 2, 5]


def test_a_single_response_continues_the_segment_of_its_prompt():
  rows = [EncodedLabelled([1, 2, 3], 1, 0.5, i) for i in (7, 8)]
  batch = Layout(responses=1).pack(rows, [[1, 0]], room=2)
  assert batch.segments[0].tolist() == [1, 1, 1, 2, 2, 2, 0, 0]
  assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
  assert batch.last[0].tolist() == [[2], [5]]
  assert batch.index.tolist() == [[8, 7]]
  assert batch.labels.dtype == np.float32 and batch.labels[0, 0] == 0.5
  assert batch.targets.shape == (1, 0)


def test_a_process_fills_its_rows_of_the_same_shape():
  layout = Layout(responses=2, targets=True)
  whole = layout.pack(PAIRS, [[0], [1]], room=2)
  for row in range(2):
    mine = layout.pack(PAIRS, [[0], [1]], 2, [row])
    for part, array in zip(mine, whole, strict=True):
      np.testing.assert_array_equal(part, array[row : row + 1])


def test_an_empty_response_ends_with_the_prompt():
  pair = EncodedPreference([1, 2], [1, 2, 3], 2, 0)
  batch = Layout(responses=2, targets=True).pack([pair], [[0]], room=1)
  assert batch.last[0, 0].tolist() == [1, 2]
  assert batch.counts[0, 0].tolist() == [0, 1]


@given(st.data())
def test_what_was_packed_can_be_read_again(data):
  """Whatever lies in which row, with shared prompts or copies of them."""
  ids = st.lists(st.integers(1, 9), min_size=1, max_size=6)
  items = []
  for i in range(data.draw(st.integers(1, 6))):
    prompt, chosen, rejected = (data.draw(ids) for _ in range(3))
    items.append(
      EncodedPreference(prompt + chosen, prompt + rejected, len(prompt), i)
    )
  plan = row_plans.balanced([item.length for item in items], 2)
  for shared in (True, False):
    batch = Layout(2, shared=shared).pack(items, plan, room=6)
    expected = {item.index: [item.chosen, item.rejected] for item in items}
    assert unpack(batch) == expected
