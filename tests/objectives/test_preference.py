"""Reward-model losses against hand-computed numbers and float64 NumPy."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from perl_jax.objectives import masked, preference

scores = st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=6)
short = hypothesis.settings(max_examples=50, deadline=None, derandomize=True)


def test_pairwise_hand_computed():
  loss = preference.pairwise_preference_loss(
    jnp.array([1.0, 0.0, 2.0]), jnp.array([1.0, 2.0, 0.0])
  )
  # log 2, log(1 + e^2), log(1 + e^-2)
  np.testing.assert_allclose(loss, [0.6931472, 2.1269280, 0.1269280], rtol=1e-6)


def test_pointwise_hand_computed():
  loss = preference.pointwise_preference_loss(
    jnp.array([0.0, 2.0, 2.0, 0.0]), jnp.array([1.0, 1.0, 0.0, 0.25])
  )
  np.testing.assert_allclose(
    loss, [0.6931472, 0.1269280, 2.1269280, 0.6931472], rtol=1e-6
  )


@short
@hypothesis.given(scores, st.integers(0, 99))
def test_pairwise_equals_slow_loop(chosen, seed):
  rejected = np.random.default_rng(seed).normal(0, 20, len(chosen))
  chosen = np.array(chosen, np.float32)
  rejected = rejected.astype(np.float32)
  expected = [
    np.log1p(np.exp(float(b) - float(a)))
    for a, b in zip(chosen, rejected, strict=True)
  ]
  np.testing.assert_allclose(
    preference.pairwise_preference_loss(chosen, rejected),
    expected,
    rtol=1e-5,
    atol=1e-30,
  )


@short
@hypothesis.given(scores, st.integers(0, 99))
def test_pointwise_equals_slow_loop(rewards, seed):
  labels = np.random.default_rng(seed).integers(0, 2, len(rewards))
  expected = [
    np.log1p(np.exp(-r if y else r))
    for r, y in zip(rewards, labels, strict=True)
  ]
  np.testing.assert_allclose(
    preference.pointwise_preference_loss(
      np.array(rewards, np.float32), labels.astype(np.float32)
    ),
    expected,
    rtol=1e-5,
    atol=1e-30,
  )


def test_stable_far_out():
  far = jnp.array([1e4, -1e4])
  zero = jnp.zeros(2)
  for loss in (
    lambda r: preference.pairwise_preference_loss(r, zero),
    lambda r: preference.pointwise_preference_loss(r, jnp.ones(2)),
  ):
    np.testing.assert_allclose(loss(far), [0.0, 1e4])
    np.testing.assert_allclose(
      jax.grad(lambda r, f=loss: jnp.sum(f(r)))(far), [0.0, -1.0]
    )


def test_gradients():
  rewards = jnp.array([0.3, -1.2])
  labels = jnp.array([1.0, 0.0])
  sigmoid = 1 / (1 + np.exp(-np.array([0.3, -1.2])))
  pointwise = jax.grad(
    lambda r: jnp.sum(preference.pointwise_preference_loss(r, labels))
  )(rewards)
  np.testing.assert_allclose(pointwise, sigmoid - labels, rtol=1e-6)
  chosen, rejected = jax.grad(
    lambda a, b: jnp.sum(preference.pairwise_preference_loss(a, b)),
    argnums=(0, 1),
  )(rewards, jnp.zeros(2))
  np.testing.assert_allclose(chosen, sigmoid - 1, rtol=1e-6)
  np.testing.assert_allclose(rejected, 1 - sigmoid, rtol=1e-6)


@pytest.mark.parametrize(
  "loss",
  [preference.pairwise_preference_loss, preference.pointwise_preference_loss],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_padding_rows_change_nothing(loss, bad):
  valid = jnp.array([True, False, True])
  first = jnp.array([0.5, bad, -1.0])
  second = jnp.array([1.0, bad, 0.0])

  def total(a, b):
    kept = loss(masked.keep(a, valid), masked.keep(b, valid))
    return masked.masked_mean(kept, valid)

  expected = np.mean(loss(first[::2], second[::2]))
  np.testing.assert_allclose(total(first, second), expected, rtol=1e-6)
  for gradient in jax.grad(total, argnums=(0, 1))(first, second):
    assert np.all(np.isfinite(gradient)) and gradient[1] == 0.0


@pytest.mark.parametrize(
  "loss",
  [preference.pairwise_preference_loss, preference.pointwise_preference_loss],
)
def test_equal_under_jit_and_strict_about_types(loss):
  first, second = jnp.array([0.5, -3.0]), jnp.array([1.0, 0.0])
  assert loss(first, second).dtype == jnp.float32
  np.testing.assert_allclose(
    jax.jit(loss)(first, second), loss(first, second), rtol=1e-6
  )
  for dtype in (jnp.int32, jnp.bfloat16):
    with pytest.raises(AssertionError, match="expected float32"):
      loss(first, second.astype(dtype))
  # A column of scores would broadcast to a [B, B] table without a word.
  with pytest.raises(AssertionError, match="equal_shape"):
    loss(first[:, None], second)
