"""Generalised advantage estimation against its definition."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from perl_jax.objectives import advantages

gae = jax.jit(advantages.gae_advantages)
short = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
numbers = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def draw(seed, shape):
  """Rewards, values, masks of a prompt, a response (maybe empty), padding."""
  rng = np.random.default_rng(seed)
  rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
  bounds = np.sort(rng.integers(0, shape[1] + 1, (shape[0], 2)), axis=1)
  time = np.arange(shape[1])
  mask = (time >= bounds[:, :1]) & (time < bounds[:, 1:])
  return {"rewards": rewards, "values": values, "response_mask": mask}


def test_hand_computed():
  found = advantages.gae_advantages(
    rewards=jnp.array([[9.0, 1.0, 2.0, 4.0, 9.0]]),
    values=jnp.array([[9.0, 0.5, 1.0, 2.0, 9.0]]),
    response_mask=jnp.array([[False, True, True, True, False]]),
    discount=0.5,
    gae_lambda=0.5,
  )
  # Deltas 1 + 0.5 - 0.5 = 1, 2 + 1 - 1 = 2, 4 + 0 - 2 = 2; decay 0.25.
  np.testing.assert_array_equal(
    found, [[[0.0, 1.625, 2.5, 2.0, 0.0]], [[0.0, 2.125, 3.5, 4.0, 0.0]]]
  )


@short
@hypothesis.given(
  shape=st.sampled_from([(1, 1), (3, 1), (2, 7)]),
  seed=st.integers(0, 99),
  discount=numbers,
  gae_lambda=numbers,
)
def test_equals_slow_loop(shape, seed, discount, gae_lambda):
  arrays = draw(seed, shape)
  rewards, values, mask = arrays.values()
  expected = np.zeros(shape)
  for b, t in zip(*np.nonzero(mask), strict=True):
    for later in range(t, shape[1]):
      if mask[b, later]:
        last = later + 1 == shape[1] or not mask[b, later + 1]
        after = 0.0 if last else float(values[b, later + 1])
        delta = rewards[b, later] + discount * after - values[b, later]
        expected[b, t] += (discount * gae_lambda) ** (later - t) * delta
  found, returns = gae(**arrays, discount=discount, gae_lambda=gae_lambda)
  assert found.dtype == returns.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    returns, np.where(mask, expected + values, 0.0), rtol=1e-5, atol=1e-5
  )


def test_the_ends_of_lambda():
  arrays = draw(1, (4, 6))
  _, returns = gae(**arrays, discount=0.9, gae_lambda=1.0)
  np.testing.assert_allclose(
    returns,
    advantages.returns_to_go(arrays["rewards"], arrays["response_mask"], 0.9),
    rtol=1e-5,
    atol=1e-6,
  )
  # A value model that foresaw everything leaves nothing to be surprised by.
  arrays["values"] = np.asarray(
    advantages.returns_to_go(arrays["rewards"], arrays["response_mask"])
  )
  found, _ = gae(**arrays, discount=1.0, gae_lambda=0.3)
  np.testing.assert_allclose(found, np.zeros((4, 6)), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_entries_change_nothing(bad):
  arrays = draw(2, (4, 6))
  mask = arrays["response_mask"]
  assert mask.any() and not mask.all()
  weights = np.random.default_rng(3).normal(size=(2, 4, 6))

  def total(rewards, values):
    found = advantages.gae_advantages(
      rewards=rewards,
      values=values,
      response_mask=mask,
      discount=0.9,
      gae_lambda=0.8,
    )
    return jnp.sum(weights * jnp.stack(found))

  step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  sides = [arrays["rewards"], arrays["values"]]
  value, gradients = step(*(np.where(mask, x, np.float32(bad)) for x in sides))
  clean, expected = step(*(np.where(mask, x, np.float32(0)) for x in sides))
  assert np.isfinite(value) and value == clean
  np.testing.assert_array_equal(gradients[0], expected[0])
  assert np.all(np.asarray(gradients[0])[~mask] == 0.0)
  assert np.all(np.asarray(gradients[0])[mask] != 0.0)
  # The value model learns from its loss alone.
  np.testing.assert_array_equal(gradients[1], np.zeros((4, 6)))


def test_equal_without_jit():
  arrays = draw(4, (3, 5))
  plain = functools.partial(
    advantages.gae_advantages, **arrays, discount=0.9, gae_lambda=0.8
  )
  np.testing.assert_allclose(
    gae(**arrays, discount=0.9, gae_lambda=0.8), plain(), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("name", ["discount", "gae_lambda"])
@pytest.mark.parametrize("number", [-0.1, 1.5, float("nan")])
def test_numbers_outside_their_range(name, number):
  fields = {"discount": 1.0, "gae_lambda": 1.0, name: number}
  with pytest.raises(ValueError, match=f"{name} must be .*got {number}"):
    advantages.gae_advantages(**draw(5, (2, 3)), **fields)


@pytest.mark.parametrize("name", ["rewards", "values"])
def test_strict_about_types_and_shapes(name):
  arrays = draw(6, (2, 3))
  for bad in (arrays[name][:, :1], arrays[name].astype(np.int32)):
    with pytest.raises(AssertionError):
      advantages.gae_advantages(
        **arrays | {name: bad}, discount=1.0, gae_lambda=1.0
      )
