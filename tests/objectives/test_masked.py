"""Masked statistics against NumPy over the kept entries only."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from perl_jax.objectives import masked

REDUCTIONS = {
  "sum": (masked.masked_sum, np.sum),
  "mean": (masked.masked_mean, np.mean),
  "var": (masked.masked_var, np.var),
}
FUNCTIONS = {
  **{name: pair[0] for name, pair in REDUCTIONS.items()},
  "whiten": masked.masked_whiten,
}
JITTED = {
  name: jax.jit(function, static_argnames="axis")
  if name in REDUCTIONS
  else jax.jit(function)
  for name, function in FUNCTIONS.items()
}
WEIGHTS = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
GRADIENTS = {
  name: jax.jit(jax.grad(lambda v, m, f=function: jnp.sum(f(v, m) * WEIGHTS)))
  for name, function in FUNCTIONS.items()
}
BAD = [np.nan, np.inf, -np.inf, 3e38]

# Few shapes, many values: every new shape is compiled.
short = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def draw(seed, shape, kept=0.6):
  rng = np.random.default_rng(seed)
  values = rng.normal(2.0, 3.0, size=shape).astype(np.float32)
  return values, rng.random(shape) < kept


def reduce_slowly(function, values, mask, axis):
  """Applies `function` to the list of kept values of every slice."""
  values = np.moveaxis(values, axis, -1)
  mask = np.moveaxis(mask, axis, -1)
  out = np.zeros(values.shape[:-1])
  for index in np.ndindex(out.shape):
    kept = [x for x, m in zip(values[index], mask[index], strict=True) if m]
    out[index] = function(np.array(kept, np.float64)) if kept else 0.0
  return out


def test_hand_computed():
  values = jnp.array([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
  mask = jnp.array([[True, True, False], [True, False, False]])
  assert masked.masked_sum(values, mask) == 7.0
  np.testing.assert_allclose(masked.masked_mean(values, mask), 7.0 / 3)
  # Token mean, not the mean of row means (2.75) and not divided by 6.
  np.testing.assert_array_equal(
    masked.masked_mean(values, mask, axis=1), [1.5, 4.0]
  )
  # ((1 - 7/3)^2 + (2 - 7/3)^2 + (4 - 7/3)^2) / 3 = 14 / 9
  np.testing.assert_allclose(
    masked.masked_var(values, mask), 14.0 / 9, rtol=1e-6
  )
  np.testing.assert_allclose(
    masked.masked_whiten(values, mask)[0],
    [-1.0690450, -0.2672612, 0.0],
    rtol=1e-6,
  )


@pytest.mark.parametrize("name", REDUCTIONS)
@short
@hypothesis.given(
  case=st.sampled_from([((1, 1), 0), ((2, 6, 3), 1), ((2, 6, 3), -1)]),
  seed=st.integers(0, 99),
)
def test_equals_slow_loop(name, case, seed):
  shape, axis = case
  values, mask = draw(seed, shape)
  reference = REDUCTIONS[name][1]
  np.testing.assert_allclose(
    JITTED[name](values, mask, axis=axis),
    reduce_slowly(reference, values, mask, axis),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize("name", REDUCTIONS)
def test_several_axes(name):
  function, reference = JITTED[name], REDUCTIONS[name][1]
  values, mask = draw(0, (3, 4, 5))
  expected = reduce_slowly(
    reference, values.reshape(12, 5), mask.reshape(12, 5), 0
  )
  np.testing.assert_allclose(
    function(values, mask, axis=(0, 1)), expected, rtol=1e-5
  )
  np.testing.assert_allclose(
    function(values, mask), reference(values[mask]), rtol=1e-5
  )


@short
@hypothesis.given(
  shape=st.sampled_from([(1, 2), (4, 5)]), seed=st.integers(0, 99)
)
def test_whiten_equals_slow_loop(shape, seed):
  values, mask = draw(seed, shape)
  kept = values[mask].astype(np.float64)
  expected = np.zeros(shape)
  if mask.any():
    expected[mask] = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
  np.testing.assert_allclose(
    JITTED["whiten"](values, mask), expected, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_masked_entries_change_nothing(name, bad):
  values, mask = draw(1, (4, 5))
  clean = np.where(mask, values, np.float32(0.0))
  dirty = np.where(mask, values, np.float32(bad))
  # XLA may make a select of x * mask, which would hide a NaN * 0.
  with jax.disable_jit():
    np.testing.assert_array_equal(
      FUNCTIONS[name](clean, mask), FUNCTIONS[name](dirty, mask)
    )
  gradient = GRADIENTS[name](dirty, mask)
  np.testing.assert_array_equal(gradient, GRADIENTS[name](clean, mask))
  assert np.all(np.isfinite(gradient))
  assert np.all(np.asarray(gradient)[~mask] == 0.0)
  assert np.any(np.asarray(gradient)[mask] != 0.0)


def test_keep_saves_the_gradient_of_a_formula_before_it():
  """The trap of the module docstring, and the way out of it."""
  mask = jnp.array([True, False])
  values = jnp.array([2.0, -1000.0])

  def trapped(v):
    return masked.masked_mean(jnp.exp(-v), mask)

  def saved(v):
    return masked.masked_mean(jnp.exp(-masked.keep(v, mask)), mask)

  assert np.isnan(jax.grad(trapped)(values)[1])
  np.testing.assert_allclose(
    jax.grad(saved)(values), [-np.exp(-2.0), 0.0], rtol=1e-6
  )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_mask_gives_zero(name):
  values = np.full((4, 5), np.nan, np.float32)
  mask = np.zeros((4, 5), bool)
  assert np.all(np.asarray(JITTED[name](values, mask)) == 0.0)
  np.testing.assert_array_equal(GRADIENTS[name](values, mask), np.zeros((4, 5)))


@pytest.mark.parametrize("value", [0.1, -1000.1, 1e20])
def test_equal_values_whiten_to_zero(value):
  """Rounding of the mean must not be blown up by a tiny deviation."""
  values = np.full((4, 5), value, np.float32)
  mask = np.arange(20).reshape(4, 5) < 17
  assert JITTED["var"](values, mask) == 0.0
  np.testing.assert_array_equal(
    JITTED["whiten"](values, mask), np.zeros((4, 5))
  )
  assert np.all(np.isfinite(GRADIENTS["whiten"](values, mask)))


def test_variance_survives_a_large_offset():
  values = 1e4 + np.array([0.0, 1.0, 2.0], np.float32)
  out = JITTED["var"](values, np.ones(3, bool))
  np.testing.assert_allclose(out, 2.0 / 3, rtol=1e-6)


def test_whiten_gradient_equals_finite_differences():
  values, mask = draw(3, (4, 5))

  def reference(v):
    kept = v[mask]
    scaled = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    return np.sum(scaled * WEIGHTS[mask])

  expected = np.zeros((4, 5))
  for index in np.ndindex(4, 5):
    step = np.zeros((4, 5))
    step[index] = 1e-6
    wide = values.astype(np.float64)
    expected[index] = (reference(wide + step) - reference(wide - step)) / 2e-6
  np.testing.assert_allclose(
    GRADIENTS["whiten"](values, mask), expected, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32, bool])
def test_float32_whatever_comes_in(name, dtype):
  out = jax.eval_shape(
    FUNCTIONS[name],
    jax.ShapeDtypeStruct((4, 5), dtype),
    jax.ShapeDtypeStruct((4, 5), bool),
  )
  assert out.dtype == jnp.float32


def test_sums_of_bfloat16_do_not_stop_growing():
  ones = np.ones(300, jnp.bfloat16)  # in bfloat16, 256 + 1 = 256
  assert JITTED["sum"](ones, np.ones(300, bool)) == 300.0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_under_jit(name):
  values, mask = draw(5, (4, 5))
  np.testing.assert_allclose(
    JITTED[name](values, mask),
    FUNCTIONS[name](values, mask),
    rtol=1e-6,
    atol=1e-6,
  )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_must_be_boolean_and_of_the_same_shape(name):
  with pytest.raises(AssertionError, match="expected bool"):
    FUNCTIONS[name](jnp.ones((2, 3)), jnp.ones((2, 3)))
  with pytest.raises(AssertionError, match="equal_shape"):
    FUNCTIONS[name](jnp.ones((2, 3)), jnp.ones((2, 1), bool))
