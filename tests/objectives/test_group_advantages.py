"""Advantages within a group of responses to one prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import advantages

KINDS = {
  "rloo": advantages.rloo_advantages,
  "grpo": lambda r: advantages.grpo_advantages(r, normalise=True, epsilon=1e-4),
  "dr": lambda r: advantages.grpo_advantages(r, normalise=False),
}


def draw(seed, groups=5, size=4):
  rng = np.random.default_rng(seed)
  return rng.normal(3.0, 2.0, size=(groups, size)).astype(np.float32)


def slowly(kind, returns, floor=1e-4):
  """Each response against a list of the others, in float64."""
  expected = np.zeros(returns.shape)
  for b, i in np.ndindex(returns.shape):
    group = [float(x) for x in returns[b]]
    if kind == "rloo":
      others = group[:i] + group[i + 1 :]
      expected[b, i] = group[i] - sum(others) / len(others)
      continue
    mean = sum(group) / len(group)
    expected[b, i] = group[i] - mean
    if kind == "grpo":
      variance = sum((x - mean) ** 2 for x in group) / len(group)
      expected[b, i] /= max(variance**0.5, floor)
  return expected


def test_hand_computed():
  returns = jnp.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
  np.testing.assert_allclose(
    advantages.rloo_advantages(returns),
    [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]],
  )
  np.testing.assert_allclose(
    advantages.grpo_advantages(returns, normalise=False),
    [[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]],
  )
  # Deviations sqrt(14 / 3) and sqrt(2).
  np.testing.assert_allclose(
    advantages.grpo_advantages(returns, normalise=True),
    [
      [-0.9258201, -0.4629100, 1.3887301],
      [-0.7071068, -0.7071068, 1.4142136],
    ],
    rtol=1e-6,
  )


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_slow_loop_and_jit(kind, size):
  returns = draw(0, size=size)
  expected = slowly(kind, returns)
  for run in (KINDS[kind], jax.jit(KINDS[kind])):
    found = run(returns)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", [0.0, 0.1, -1e6 / 3])
def test_equal_returns_are_exactly_zero(kind, reward):
  """0.1 + 0.1 + 0.1 is not 3 * 0.1, and 0 / 0 is not 0."""
  returns = jnp.full((2, 3), reward, jnp.float32)
  for run in (KINDS[kind], jax.jit(KINDS[kind])):
    np.testing.assert_array_equal(run(returns), np.zeros((2, 3)))
  gradient = jax.grad(lambda r: jnp.sum(KINDS[kind](r)[:, 0]))(returns)
  assert np.all(np.isfinite(gradient))


def test_the_floor_holds_small_differences_down():
  returns = jnp.array([[0.0, 2e-3]])
  found = [
    advantages.grpo_advantages(returns, normalise=True, epsilon=epsilon)
    for epsilon in (1e-4, 0.1)
  ]
  np.testing.assert_allclose(found, [[[-1.0, 1.0]], [[-0.01, 0.01]]], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_do_not_see_each_other(kind):
  returns = draw(1)
  whole = np.asarray(KINDS[kind](returns))
  np.testing.assert_array_equal(KINDS[kind](returns[2:3]), whole[2:3])
  np.testing.assert_allclose(whole.sum(axis=1), 0.0, atol=1e-5)
  # A constant added to every return of a prompt is no merit of a response.
  np.testing.assert_allclose(
    KINDS[kind](returns + 8.0), whole, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("kind", ["rloo", "dr"])
def test_gradient_is_that_of_the_linear_map(kind):
  scale = {"rloo": 4 / 3, "dr": 1.0}[kind]
  expected = scale * (np.eye(4) - 0.25)
  jacobian = jax.jacobian(lambda r: KINDS[kind](r[None])[0])(draw(2)[0])
  np.testing.assert_allclose(jacobian, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind):
  with pytest.raises(ValueError, match="got 1 of each: sample a group of at"):
    KINDS[kind](jnp.zeros((4, 1)))
  with pytest.raises(AssertionError):
    KINDS[kind](jnp.zeros((4,)))
  with pytest.raises(AssertionError, match="expected float32"):
    KINDS[kind](jnp.zeros((4, 2), jnp.int32))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_floor_outside_its_range(epsilon):
  with pytest.raises(ValueError, match=f"epsilon must be > 0, got {epsilon}"):
    advantages.grpo_advantages(
      jnp.zeros((1, 2)), normalise=True, epsilon=epsilon
    )
