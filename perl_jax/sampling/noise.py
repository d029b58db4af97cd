"""The noise of a draw, as JAX makes it and in less time on a CPU.

A draw from softmax(z) is the argmax of z plus standard Gumbel noise, here that
of `jax.random.gumbel`, bit by bit. On a CPU JAX compiles the rounds of its
generator as a loop, which writes and reads arrays as large as the logits in
each; here all rounds are one pass over one array.
"""

import jax
import jax.numpy as jnp

from perl_jax.models import attention

# Rotations of the rounds, four at a time, and the constant of the third key.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
  """Index of a draw from the softmax of each row of logits, `[B]`, int32.

  As `jax.vmap(jax.random.categorical)`, with the same keys the same draw.

  Args:
    keys: Random keys, `[B]`.
    logits: `[B, V]`, float32.
  """
  if not _one_pass(keys):
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
  return argmax(logits + gumbel(keys, logits.shape[-1]))


def _one_pass(keys) -> bool:
  """Whether `gumbel` does here what JAX does, and in less time."""
  return (
    attention.platform()[0] == "cpu"
    and jax.random.key_impl(keys) == "threefry2x32"
    and jax.config.jax_threefry_partitionable
  )


def gumbel(keys: jax.Array, size: int) -> jax.Array:
  """-log(-log u), u uniform in (0, 1): `[B, size]`, float32.

  Args:
    keys: Keys of JAX's "threefry2x32", `[B]`.
    size: Number of values of each key, below 2^32.
  """
  bits = threefry_bits(jax.random.key_data(keys), size)
  # 23 bits of mantissa in [1, 2), less 1; and above 0.
  one = jnp.uint32(0x3F800000)
  floats = jax.lax.bitcast_convert_type((bits >> 9) | one, jnp.float32) - 1.0
  tiny = jnp.finfo(jnp.float32).tiny
  uniform = jnp.maximum(tiny, floats * (1.0 - tiny) + tiny)
  return -jnp.log(-jnp.log(uniform))


def threefry_bits(key_data: jax.Array, size: int) -> jax.Array:
  """The bits `jax.random.bits(key, (size,), "uint32")` of each key.

  Value i is the xor of both words of Threefry-2x32 (20 rounds) of the counter
  (0, i).

  Args:
    key_data: Both words of each key, `[B, 2]`, uint32.
    size: Number of values of each key.

  Returns:
    `[B, size]`, uint32.

  Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
  """
  first, second = key_data[:, :1], key_data[:, 1:]
  words = first, second, first ^ second ^ jnp.uint32(_PARITY)
  # The high word of the counter is 0.
  x, y = words[0], jnp.arange(size, dtype=jnp.uint32) + words[1]
  for block in range(5):
    for rotation in _ROTATIONS[block % 2]:
      x = x + y
      y = x ^ ((y << rotation) | (y >> (32 - rotation)))
    x = x + words[(block + 1) % 3]
    y = y + words[(block + 2) % 3] + jnp.uint32(block + 1)
  return x ^ y


def argmax(x: jax.Array) -> jax.Array:
  """First index of the largest value of each row, int32.

  Two reductions, each of which a CPU does in vectors; its own argmax is a
  reduction of pairs, which it does one by one. Of a row with a NaN it is some
  index of the row.
  """
  size = x.shape[-1]
  index = jnp.arange(size, dtype=jnp.int32)
  largest = jnp.max(x, axis=-1, keepdims=True)
  first = jnp.min(jnp.where(x == largest, index, size), axis=-1)
  return jnp.minimum(first, size - 1)
