"""Noise of one pass against JAX's own, and draws against JAX's draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.sampling import noise

KEYS = jax.random.split(jax.random.key(3), 5)


@pytest.mark.parametrize("size", [1, 29, 1000])
def test_bits_and_noise_are_those_of_jax(size):
  bits = jax.jit(noise.threefry_bits, static_argnums=1)
  expected = [jax.random.bits(key, (size,), "uint32") for key in KEYS]
  np.testing.assert_array_equal(
    bits(jax.random.key_data(KEYS), size), np.stack(expected)
  )
  found = jax.jit(noise.gumbel, static_argnums=1)(KEYS, size)
  expected = [jax.random.gumbel(key, (size,), jnp.float32) for key in KEYS]
  # The same numbers in two compiled programs.
  np.testing.assert_allclose(found, np.stack(expected), rtol=1e-6)


def test_draws_are_those_of_jax():
  logits = 3.0 * jax.random.normal(jax.random.key(0), (5, 300))
  logits = jnp.where(logits < -2.0, -jnp.inf, logits)
  found = jax.jit(noise.draw)(KEYS, logits)
  expected = jax.vmap(jax.random.categorical)(KEYS, logits)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, expected)
  assert len(set(found.tolist())) > 1


def test_other_generators_draw_with_their_own_noise():
  keys = jax.random.split(jax.random.key(3, impl="rbg"), 5)
  logits = jnp.zeros((5, 300))
  np.testing.assert_array_equal(
    noise.draw(keys, logits), jax.vmap(jax.random.categorical)(keys, logits)
  )


def test_argmax_is_the_first_of_the_largest(rng):
  x = rng.integers(4, size=(6, 9)).astype(np.float32)
  x[0] = -np.inf
  np.testing.assert_array_equal(noise.argmax(x), x.argmax(axis=-1))
  x[1] = np.nan
  assert 0 <= noise.argmax(x)[1] < 9
