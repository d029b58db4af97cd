"""What follows a response, against a loop over lists of tokens."""

import jax
import numpy as np
import pytest

from perl_jax import roles

STOPS = (7, 8)
RESPONSES = ([1, 2, 7], [3, 1, 2, 8], [4, 5, 6, 1], [8], [], [7, 7])
LENGTH = 4


def padded(rows, width, fill=9):
  """(tokens `[B, width]`, mask)."""
  tokens = np.full((len(rows), width), fill, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  return tokens, mask


def expected(row, closing):
  """(tokens that are read, number of them that are the response)."""
  if not row:  # of padding
    return row, 0
  stopped = row[-1] in STOPS
  if not closing.keeps_stop:
    kept = row[:-1] if stopped else row
    return [*kept, *closing.tokens], len(kept)
  # A response that was cut is closed as one that has stopped.
  end = [] if stopped else [STOPS[0]]
  return [*row, *end, *closing.tokens], len(row)


@pytest.mark.parametrize("keeps_stop", [True, False])
@pytest.mark.parametrize("tokens", [(), (5,), (5, 7), (5, 6, 1)])
def test_the_tokens_follow_responses_whole_or_cut(tokens, keeps_stop):
  closing = roles.Closing(tokens, STOPS, keeps_stop)
  responses, mask = padded(RESPONSES, LENGTH)
  found = jax.jit(closing.append)(responses, mask)
  width = found.tokens.shape[1]
  assert closing.longest == len(tokens) + keeps_stop
  assert LENGTH + closing.longest <= width == LENGTH + closing.room
  assert width % 2 == 0
  wanted = [expected(row, closing) for row in RESPONSES]
  ids, read = padded([row for row, _ in wanted], width)
  np.testing.assert_array_equal(found.mask, read)
  np.testing.assert_array_equal(found.tokens[read], ids[read])
  own = np.arange(width) < np.array([n for _, n in wanted])[:, None]
  np.testing.assert_array_equal(found.response_mask, own)
  # The same for groups of responses.
  grouped = closing.append(
    responses.reshape(3, 2, LENGTH), mask.reshape(3, 2, LENGTH)
  )
  for one, other in zip(grouped, found, strict=True):
    np.testing.assert_array_equal(one.reshape(6, width), other)


def test_without_a_closing_a_response_is_read_as_it_is():
  responses, mask = padded(RESPONSES, LENGTH)
  found = roles.closed(None, responses, mask)
  assert found.tokens is responses
  assert found.mask is mask and found.response_mask is mask
