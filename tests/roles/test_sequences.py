"""Tokens, positions and segments of each row layout."""

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles
from perl_jax.segments import PREFIX


def test_right_padded():
  tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
  found = roles.right_padded(tokens, jnp.array([3, 1]))
  np.testing.assert_array_equal(found.tokens, tokens)
  np.testing.assert_array_equal(found.positions, [[0, 1, 2], [0, 0, 0]])
  np.testing.assert_array_equal(found.segments, [[1, 1, 1], [1, 0, 0]])
  assert found.positions.dtype == found.segments.dtype == jnp.int32


def test_left_padded():
  tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
  found = roles.left_padded(tokens, jnp.array([3, 2]))
  np.testing.assert_array_equal(found.positions, [[0, 1, 2], [0, 0, 1]])
  np.testing.assert_array_equal(found.segments, [[1, 1, 1], [0, 1, 1]])


def test_with_response():
  found = roles.with_response(
    np.array([[0, 7, 8], [4, 5, 6]]),
    jnp.array([2, 3]),
    np.array([[1, 2], [3, 0]]),
    np.array([[True, True], [True, False]]),
  )
  np.testing.assert_array_equal(
    found.tokens, [[0, 7, 8, 1, 2], [4, 5, 6, 3, 0]]
  )
  np.testing.assert_array_equal(
    found.positions, [[0, 0, 1, 2, 3], [0, 1, 2, 3, 0]]
  )
  np.testing.assert_array_equal(
    found.segments, [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
  )


def test_with_response_of_a_group():
  """Prompts once, positions that go on from them, a segment a response."""
  args = (
    np.array([[0, 7, 8], [4, 5, 6]]),
    jnp.array([2, 3]),
    np.array([[1, 2], [3, 0], [9, 9], [0, 0]]),
    np.array([[1, 1], [1, 0], [1, 1], [0, 0]], bool),
  )
  found = roles.with_response(*args, group=2)
  np.testing.assert_array_equal(
    found.tokens, [[0, 7, 8, 1, 2, 3, 0], [4, 5, 6, 9, 9, 0, 0]]
  )
  np.testing.assert_array_equal(
    found.positions, [[0, 0, 1, 2, 3, 2, 0], [0, 1, 2, 3, 4, 0, 0]]
  )
  p = PREFIX
  np.testing.assert_array_equal(
    found.segments,
    [[0, p, p, p + 1, p + 1, p + 2, 0], [p, p, p, p + 1, p + 1, 0, 0]],
  )
  assert found.positions.dtype == found.segments.dtype == jnp.int32
  with pytest.raises(ValueError, match=r"\(4, 2\) are not group=3 .* give 6"):
    roles.with_response(*args, group=3)
