"""Rows that hold a prompt and both of its responses."""

import dataclasses

import numpy as np

from perl_jax import roles
from perl_jax.models import transformer
from tests import toys


def test_a_row_holds_both_responses_and_its_prompt_once():
  tokens = np.array([[1, 2, 3, 4, 5, 0]]), np.array([[1, 2, 3, 6, 7, 8]])
  rows = roles.pair_rows(
    prompt_lengths=np.array([3]),
    chosen_tokens=tokens[0],
    chosen_lengths=np.array([5]),
    rejected_tokens=tokens[1],
    rejected_lengths=np.array([6]),
    max_response=4,
  )
  inside = rows.sequence.segments != 0
  np.testing.assert_array_equal(
    np.where(inside, rows.sequence.tokens, 0),
    [[1, 2, 3, 4, 5, 0, 6, 7, 8, 0]],
  )
  np.testing.assert_array_equal(
    rows.sequence.positions, [[0, 1, 2, 3, 4, 0, 3, 4, 5, 0]]
  )
  both = transformer.SHARED
  np.testing.assert_array_equal(
    rows.sequence.segments, [[both, both, both, 1, 1, 0, 2, 2, 2, 0]]
  )
  own = rows.responses
  np.testing.assert_array_equal(
    np.where(rows.response_mask, own.tokens, 0),
    [[0, 4, 5, 0, 0], [0, 6, 7, 8, 0]],
  )
  np.testing.assert_array_equal(own.tokens[:, 0], [3, 3])


def test_a_kernel_without_masks_keeps_the_responses_apart():
  config = toys.config("tiny")
  assert roles.can_pair(config, width=10, max_response=5)
  assert not roles.can_pair(config, width=10, max_response=6)
  splash = dataclasses.replace(config, attention="splash")
  assert not roles.can_pair(splash, width=10, max_response=4)
