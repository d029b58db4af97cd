"""Causal attention by XLA in blocks of queries, for masks of any kind.

Each block is compared with the keys up to its end alone. A long block is
computed in parts, one after the other, and once more for its gradient, so that
nothing but the mask grows with the square of a row's length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl_jax.models.matmul import matmul

# Blocks end at multiples of a TPU's lanes, and are unrolled in the program.
LANES = 128
_MAX_BLOCKS = 4
# A longer block is computed in parts of so many queries.
_LONGEST_BLOCK, _PART = 512, 256

# `weights(scores, mask)`, of scores `[B, K, G, T, S]` and a mask `[B, T, S]`.
Weights = Callable[[jax.Array, jax.Array], jax.Array]


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  attention_mask: jax.Array,
  weights: Weights,
) -> jax.Array:
  """Attention of queries to the keys up to their block's end.

  Args:
    q: Queries by the head that they read, `[B, T, K, G, H]`.
    k: Keys, `[B, T, K, H]`.
    v: Values, `[B, T, K, H]`.
    attention_mask: True where a query may see a key, `[B, T, T]`; nowhere
      behind its own column.
    weights: Makes the weights of values out of scores.

  Returns:
    `[B, T, K, G, H]`.
  """
  q = q.transpose(0, 2, 3, 1, 4)
  k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
  out = []
  for start, end in query_blocks(q.shape[3]):
    block = q[:, :, :, start:end], k[..., :end], v[:, :, :end]
    if end - start > _LONGEST_BLOCK:
      out.append(_in_parts(*block, attention_mask, start, weights))
    else:
      seen = attention_mask[:, start:end, :end]
      out.append(_block(*block, seen, weights))
  return jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4)


def query_blocks(length: int) -> list[tuple[int, int]]:
  """Runs of columns: at most `_MAX_BLOCKS`, of whole `LANES` but the last."""
  block = LANES * -(-length // (LANES * _MAX_BLOCKS))
  starts = range(0, length, block)
  return [(start, min(start + block, length)) for start in starts]


def _block(q, k, v, mask, weights):
  return matmul(weights(matmul(q, k, "float32"), mask), v)


def _in_parts(q, k, v, attention_mask, start, weights):
  """`_block` of the queries from `start` on, with the scores of one part."""

  @jax.checkpoint
  def attend_part(q, at):
    # Cut here: parts laid out beforehand would be a second mask.
    shape = q.shape[0], q.shape[3], k.shape[-1]
    seen = jax.lax.dynamic_slice(attention_mask, (0, at, 0), shape)
    return _block(q, k, v, seen, weights)

  whole = q.shape[3] // _PART
  end = whole * _PART
  parts = q[:, :, :, :end]
  parts = parts.reshape(*q.shape[:3], whole, _PART, q.shape[-1])
  out = jax.lax.map(
    lambda part: attend_part(*part),
    (jnp.moveaxis(parts, 3, 0), start + _PART * jnp.arange(whole)),
  )
  out = jnp.moveaxis(out, 0, 3).reshape(*q.shape[:3], end, -1)
  if end == q.shape[3]:
    return out
  rest = attend_part(q[:, :, :, end:], start + end)
  return jnp.concatenate([out, rest], axis=3)
