"""PPO's losses against their definition, branch by branch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import masked, policy_gradient

policy_loss = functools.partial(
  policy_gradient.ppo_policy_loss, clip_low=0.2, clip_high=0.3
)
value_loss = functools.partial(policy_gradient.ppo_value_loss, value_clip=0.5)


def draw(seed, count, shape=(4, 5)):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, *shape)).astype(np.float32)


def test_policy_hand_computed():
  ratio = [[1.5, 1.5, 0.5, 0.5, 1.25, 0.75, 1.0]]
  advantage = [[2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 0.0]]
  loss, clipped = policy_loss(
    logprobs=jnp.log(jnp.array(ratio)) - 1.0,
    old_logprobs=jnp.full((1, 7), -1.0),
    advantages=jnp.array(advantage),
  )
  # Only what would go on in the direction it has gone too far in is held.
  np.testing.assert_array_equal(
    clipped, [[True, False, False, True, False, True, False]]
  )
  np.testing.assert_allclose(
    loss, [[-2.6, 3.0, -1.0, 1.6, -2.5, 1.6, 0.0]], rtol=1e-6
  )


def test_policy_equals_slow_loop_and_jit():
  logprobs, old, advantage = draw(0, 3)
  expected = np.zeros((4, 5))
  held = np.zeros((4, 5), bool)
  for i in np.ndindex(4, 5):
    ratio = np.exp(float(logprobs[i]) - float(old[i]))
    inside = min(max(ratio, 0.8), 1.3)
    free, bound = ratio * float(advantage[i]), inside * float(advantage[i])
    expected[i] = -min(free, bound)
    held[i] = bound < free
  assert held.any() and not held.all()
  arrays = {"logprobs": logprobs, "old_logprobs": old, "advantages": advantage}
  for run in (policy_loss, jax.jit(policy_loss)):
    loss, clipped = run(**arrays)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(clipped, held)


def test_policy_gradient_in_closed_form():
  """-w A where it is free, 0 where it is clipped; nothing to the others."""
  logprobs, old, advantage = draw(1, 3)

  def total(*arrays):
    names = ("logprobs", "old_logprobs", "advantages")
    loss, clipped = policy_loss(**dict(zip(names, arrays, strict=True)))
    return jnp.sum(loss), clipped

  (mine, *others), clipped = jax.jit(
    jax.grad(total, argnums=(0, 1, 2), has_aux=True)
  )(logprobs, old, advantage)
  expected = np.where(clipped, 0.0, -np.exp(logprobs - old) * advantage)
  np.testing.assert_allclose(mine, expected, rtol=1e-5)
  np.testing.assert_array_equal(others, np.zeros((2, 4, 5)))


def test_first_update_is_that_of_reinforce():
  logprobs, advantage = draw(2, 2)

  def total(loss, x):
    return jnp.sum(loss(logprobs=x, advantages=advantage))

  def ppo(logprobs, advantages):
    return policy_gradient.ppo_policy_loss(
      logprobs=logprobs,
      old_logprobs=jax.lax.stop_gradient(logprobs),
      advantages=advantages,
      clip_low=0.0,
      clip_high=0.0,
    )[0]

  mine, theirs = (
    jax.grad(functools.partial(total, loss))(logprobs)
    for loss in (ppo, policy_gradient.reinforce_loss)
  )
  np.testing.assert_array_equal(mine, theirs)


def test_a_ratio_that_overflows_is_held_or_said():
  """exp(200) is infinite: held, it costs the bound and has no gradient."""
  logprobs, old = jnp.full((1, 1), -1.0), jnp.full((1, 1), -201.0)

  def total(x, advantage):
    return jnp.sum(
      policy_loss(logprobs=x, old_logprobs=old, advantages=advantage)[0]
    )

  value, gradient = jax.value_and_grad(total)(logprobs, jnp.full((1, 1), 2.0))
  np.testing.assert_allclose(value, -2.6, rtol=1e-6)
  assert gradient == 0.0
  assert total(logprobs, jnp.full((1, 1), -2.0)) == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_tokens_change_nothing(bad):
  mask = np.random.default_rng(3).random((4, 5)) < 0.6
  clean = draw(4, 6) * mask
  dirty = np.where(mask, clean, np.float32(bad))

  def total(*arrays):
    kept = [masked.keep(x, mask) for x in arrays]
    names = ("logprobs", "old_logprobs", "advantages")
    policy, clipped = policy_loss(**dict(zip(names, kept[:3], strict=True)))
    names = ("values", "old_values", "returns")
    value, _ = value_loss(**dict(zip(names, kept[3:], strict=True)))
    return masked.masked_mean(policy + value, mask), masked.masked_sum(
      clipped, mask
    )

  step = jax.jit(jax.value_and_grad(total, argnums=(0, 3), has_aux=True))
  found, expected = step(*dirty), step(*clean)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  for gradient in found[1]:
    assert np.all(np.asarray(gradient)[~mask] == 0.0)
    assert np.any(np.asarray(gradient)[mask] != 0.0)


def test_value_hand_computed():
  values = [[1.0, 1.0, 1.0, 0.25]]
  returns = [[2.0, -1.0, 0.6, 1.0]]
  loss, clipped = value_loss(
    values=jnp.array(values),
    old_values=jnp.zeros((1, 4)),
    returns=jnp.array(returns),
  )
  # Bounded at 0.5: (2 - 0.5)^2 held; (-1 - 1)^2 pulls back; 0.4^2 against
  # 0.1^2; the last has not moved far.
  np.testing.assert_allclose(loss, [[2.25, 4.0, 0.16, 0.5625]], rtol=1e-6)
  assert clipped.tolist() == [[True, False, False, False]]


def test_value_equals_slow_loop_and_jit():
  values, old, returns = draw(5, 3)
  expected = np.zeros((4, 5))
  slope = np.zeros((4, 5))
  for i in np.ndindex(4, 5):
    v, o, z = (float(x[i]) for x in (values, old, returns))
    bound = o + min(max(v - o, -0.5), 0.5)
    expected[i] = max((z - v) ** 2, (z - bound) ** 2)
    free = (z - v) ** 2 >= (z - bound) ** 2
    slope[i] = -2 * (z - v) if free else 0.0
  assert (slope == 0).any() and not (slope == 0).all()

  def total(values, old, returns):
    loss, _ = value_loss(values=values, old_values=old, returns=returns)
    return jnp.sum(loss), loss

  step = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
  for run in (step, jax.jit(step)):
    (mine, *others), loss = run(values, old, returns)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(others, np.zeros((2, 4, 5)))


def test_value_clip_of_zero_is_off():
  values, old, returns = draw(6, 3)
  loss, clipped = policy_gradient.ppo_value_loss(
    values=values, old_values=old, returns=returns, value_clip=0.0
  )
  expected = policy_gradient.value_loss(values=values, returns=returns)
  np.testing.assert_array_equal(loss, expected)
  assert not clipped.any()


@pytest.mark.parametrize(
  "low, high", [(-0.1, 0.2), (1.1, 0.2), (0.2, -0.1), (0.2, float("nan"))]
)
def test_bounds_outside_their_range(low, high):
  zero = jnp.zeros((1, 1))
  with pytest.raises(ValueError, match=f"got {low} and {high}; 0.2 for both"):
    policy_gradient.ppo_policy_loss(
      logprobs=zero,
      old_logprobs=zero,
      advantages=zero,
      clip_low=low,
      clip_high=high,
    )


@pytest.mark.parametrize("clip", [-0.1, float("nan")])
def test_value_clip_outside_its_range(clip):
  zero = jnp.zeros((1, 1))
  with pytest.raises(ValueError, match=f"got {clip}; 0 turns clipping off"):
    policy_gradient.ppo_value_loss(
      values=zero, old_values=zero, returns=zero, value_clip=clip
    )


def test_strict_about_types_and_shapes():
  good = jnp.zeros((2, 3))
  for bad in (good.astype(jnp.bfloat16), good.astype(jnp.int32), good[:, :1]):
    for name in ("logprobs", "old_logprobs", "advantages"):
      arrays = {"logprobs": good, "old_logprobs": good, "advantages": good}
      with pytest.raises(AssertionError):
        policy_loss(**arrays | {name: bad})
    for name in ("values", "old_values", "returns"):
      arrays = {"values": good, "old_values": good, "returns": good}
      with pytest.raises(AssertionError):
        value_loss(**arrays | {name: bad})
