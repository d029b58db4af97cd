"""Batches made as wide as the widest: only padding is added."""

import numpy as np

from perl_jax.data.batches import packed_responses, prompts, widths


class Item:
  """A prompt with its responses."""

  label = 1.0

  def __init__(self, prompt, responses, index):
    self.prompt, self.responses, self.index = prompt, responses, index


def packed(sizes, rows):
  """Items of so many tokens, one after the other in each row."""
  layout = packed_responses.Layout(2, targets=True)
  items = [
    Item([7] * size, [[8] * size, [9]], index)
    for index, size in enumerate(sizes)
  ]
  plan = [list(range(i, len(items), rows)) for i in range(rows)]
  return layout.pack(items, plan, -(-len(items) // rows))


def test_packed_rows_keep_what_is_in_them():
  small, large = packed([2, 1], 1), packed([5, 4, 6, 3, 2], 2)
  found, same = widths.as_wide([small, large])
  assert [x.shape for x in found] == [x.shape for x in large]
  assert all(a is b for a, b in zip(same, large, strict=True))
  assert packed_responses.unpack(found) == packed_responses.unpack(small)
  assert found.num_tokens == small.num_tokens == 2 * 2 + 1 + 2 * 1 + 1
  assert found.valid.sum() == 2 and set(found.index[~found.valid]) == {-1}
  # Where the tokens of a response are said to be, they are.
  for index, (n, p) in found.places():
    start, count = found.offsets[n, p, 0], found.counts[n, p, 0]
    columns = found.targets[n, start : start + count]
    assert list(found.tokens[n, columns]) == [8] * [2, 1][index]


def test_prompts_end_in_the_last_column():
  rows = [prompts.EncodedPrompt([5, 6], 3)]
  short = prompts.collate_prompts(rows, 2, 1)
  long = prompts.collate_prompts(rows, 5, 2)
  found, _ = widths.as_wide([short, long])
  np.testing.assert_array_equal(found.tokens, [[0, 0, 0, 5, 6], [0] * 5])
  np.testing.assert_array_equal(found.lengths, [2, 0])
  np.testing.assert_array_equal(found.valid, [True, False])
  np.testing.assert_array_equal(found.index, [3, -1])


def test_others_may_be_wider():
  rows = [prompts.EncodedPrompt([5, 6], 3)]
  short, long = (prompts.collate_prompts(rows, n, 1) for n in (2, 4))
  (found,) = widths.as_wide([short], [short, long])
  assert found.tokens.shape == (1, 4)
