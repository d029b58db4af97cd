"""Rewards with KL, returns and advantages against slow loops."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from perl_jax.objectives import advantages

shape_rewards = jax.jit(advantages.shape_rewards)
returns_to_go = jax.jit(advantages.returns_to_go)

short = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.sampled_from([(1, 1), (3, 1), (2, 7)])
BAD = [np.nan, np.inf, -np.inf]


def draw(seed, shape):
  """Scores, KL, and masks of a prompt, a response (maybe empty), padding."""
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=shape[0]).astype(np.float32)
  kl = rng.normal(size=shape).astype(np.float32)
  bounds = np.sort(rng.integers(0, shape[1] + 1, (shape[0], 2)), axis=1)
  time = np.arange(shape[1])
  mask = (time >= bounds[:, :1]) & (time < bounds[:, 1:])
  return scores, kl, mask


def test_hand_computed():
  mask = jnp.array([[False, True, True, False], [False] * 4, [True] * 4])
  np.testing.assert_array_equal(advantages.last_token(mask), [2, -1, 3])
  rewards = advantages.shape_rewards(
    sequence_rewards=jnp.array([10.0, 10.0, -1.0]),
    kl=jnp.array([[9.0, 1.0, 2.0, 9.0], [9.0] * 4, [0.0, 1.0, 2.0, 3.0]]),
    response_mask=mask,
    beta=0.25,
  )
  np.testing.assert_allclose(
    rewards,
    [[0.0, -0.25, 7.0, 0.0], [0.0] * 4, [0.0, -0.25, -0.5, -1.5]],
  )
  np.testing.assert_allclose(
    advantages.returns_to_go(rewards, mask),
    [[0.0, 6.75, 7.0, 0.0], [0.0] * 4, [-2.25, -2.25, -2.0, -1.5]],
  )
  np.testing.assert_allclose(
    advantages.returns_to_go(rewards, mask, discount=0.5),
    [[0.0, 3.25, 7.0, 0.0], [0.0] * 4, [-0.4375, -0.875, -1.25, -1.5]],
  )


def test_without_kl_every_return_is_the_score():
  scores, _, mask = draw(0, (4, 6))
  rewards = shape_rewards(
    sequence_rewards=scores,
    kl=np.zeros((4, 6), np.float32),
    response_mask=mask,
    beta=0.0,
  )
  np.testing.assert_array_equal(
    returns_to_go(rewards, mask),
    np.where(mask, scores[:, None], 0.0),
  )


@short
@hypothesis.given(
  shape=shapes,
  seed=st.integers(0, 99),
  beta=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_shape_rewards_equals_slow_loop(shape, seed, beta):
  scores, kl, mask = draw(seed, shape)
  expected = np.zeros(shape)
  for b in range(shape[0]):
    response = [t for t in range(shape[1]) if mask[b, t]]
    for t in response:
      expected[b, t] = -beta * kl[b, t]
    if response:
      expected[b, response[-1]] += (1 - beta) * scores[b]
  rewards = shape_rewards(
    sequence_rewards=scores, kl=kl, response_mask=mask, beta=beta
  )
  assert rewards.dtype == jnp.float32
  np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)


@short
@hypothesis.given(
  shape=shapes,
  seed=st.integers(0, 99),
  discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
  holes=st.booleans(),
)
def test_returns_equal_slow_loop(shape, seed, discount, holes):
  _, rewards, mask = draw(seed, shape)
  if holes:
    mask = np.random.default_rng(seed).random(shape) < 0.5
  expected = np.zeros(shape)
  for b, t in zip(*np.nonzero(mask), strict=True):
    for later in range(t, shape[1]):
      if mask[b, later]:
        expected[b, t] += discount ** (later - t) * rewards[b, later]
  returns = returns_to_go(rewards, mask, discount)
  assert returns.dtype == jnp.float32
  np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", BAD)
def test_masked_entries_change_nothing(bad):
  scores, kl, mask = draw(1, (4, 6))
  mask[2] = False
  empty = ~mask.any(axis=1)
  dirty_scores = np.where(empty, np.float32(bad), scores)
  dirty_kl = np.where(mask, kl, np.float32(bad))
  weights = np.random.default_rng(2).normal(size=(4, 6))

  def total(scores, kl):
    rewards = advantages.shape_rewards(
      sequence_rewards=scores, kl=kl, response_mask=mask, beta=0.1
    )
    rewards = jnp.where(mask, rewards, bad)
    return jnp.sum(weights * advantages.returns_to_go(rewards, mask, 0.9))

  step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  value, gradients = step(dirty_scores, dirty_kl)
  clean_value, clean_gradients = step(
    np.where(empty, 0.0, scores).astype(np.float32), np.where(mask, kl, 0.0)
  )
  assert np.isfinite(value) and value == clean_value
  for gradient, clean in zip(gradients, clean_gradients, strict=True):
    np.testing.assert_array_equal(gradient, clean)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0.0)
  assert np.all(np.asarray(gradients[1])[~mask] == 0.0)


def test_reinforce_advantages_leave_the_value_model_alone():
  returns = jnp.array([[1.0, 2.0]])
  values = jnp.array([[0.25, 3.0]])
  np.testing.assert_array_equal(
    advantages.reinforce_advantages(returns, values), [[0.75, -1.0]]
  )
  to_returns, to_values = jax.grad(
    lambda z, v: jnp.sum(advantages.reinforce_advantages(z, v)),
    argnums=(0, 1),
  )(returns, values)
  np.testing.assert_array_equal(to_returns, [[1.0, 1.0]])
  np.testing.assert_array_equal(to_values, [[0.0, 0.0]])


def test_equal_under_jit_with_traced_numbers():
  scores, kl, mask = draw(3, (3, 5))

  def chain(scores, kl, mask, beta, discount):
    rewards = advantages.shape_rewards(
      sequence_rewards=scores, kl=kl, response_mask=mask, beta=beta
    )
    returns = advantages.returns_to_go(rewards, mask, discount)
    return advantages.reinforce_advantages(returns, kl)

  plain = chain(scores, kl, mask, 0.05, 0.9)
  jitted = jax.jit(chain)(scores, kl, mask, 0.05, 0.9)
  np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-6)


def test_padding_and_batch_do_not_change_a_row():
  scores, kl, mask = draw(4, (3, 5))

  def chain(scores, kl, mask):
    rewards = shape_rewards(
      sequence_rewards=scores, kl=kl, response_mask=mask, beta=0.3
    )
    return returns_to_go(rewards, mask)

  wide = np.pad(kl, ((0, 0), (2, 3))), np.pad(mask, ((0, 0), (2, 3)))
  whole = np.asarray(chain(scores, kl, mask))
  padded = np.asarray(chain(scores, *wide))
  np.testing.assert_array_equal(padded[:, 2:7], whole)
  np.testing.assert_array_equal(
    chain(scores[1:2], kl[1:2], mask[1:2]), whole[1:2]
  )


@pytest.mark.parametrize("dtype", [np.int32, jnp.bfloat16])
def test_rewards_must_be_float32(dtype):
  scores, kl, mask = draw(5, (2, 3))
  shaped = {"response_mask": mask, "beta": 0.1}
  with pytest.raises(AssertionError, match="expected float32"):
    advantages.shape_rewards(
      sequence_rewards=scores.astype(dtype), kl=kl, **shaped
    )
  with pytest.raises(AssertionError, match="expected float32"):
    advantages.shape_rewards(
      sequence_rewards=scores, kl=kl.astype(dtype), **shaped
    )
  with pytest.raises(AssertionError, match="expected float32"):
    advantages.returns_to_go(kl.astype(dtype), mask)
  with pytest.raises(AssertionError, match="expected float32"):
    advantages.reinforce_advantages(kl, kl.astype(dtype))


@pytest.mark.parametrize("beta", [-0.1, 1.5, 2, float("nan")])
def test_beta_outside_its_range(beta):
  scores, kl, mask = draw(6, (2, 3))
  with pytest.raises(ValueError, match=f"beta must be .*got {beta}"):
    advantages.shape_rewards(
      sequence_rewards=scores, kl=kl, response_mask=mask, beta=beta
    )


def test_shapes_that_would_broadcast_are_refused():
  scores, kl, mask = draw(7, (3, 3))
  with pytest.raises(AssertionError):
    advantages.shape_rewards(
      sequence_rewards=scores[:1], kl=kl, response_mask=mask, beta=0.1
    )
  with pytest.raises(AssertionError):
    advantages.shape_rewards(
      sequence_rewards=scores, kl=kl, response_mask=mask[:, :1], beta=0.1
    )
  with pytest.raises(AssertionError):
    advantages.returns_to_go(kl, mask[:1])
  with pytest.raises(AssertionError, match="expected bool"):
    advantages.last_token(mask.astype(np.float32))
  with pytest.raises(AssertionError):
    advantages.reinforce_advantages(kl, kl[:, :1])
