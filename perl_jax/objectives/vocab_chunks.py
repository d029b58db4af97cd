"""Scores of target tokens from logits of one piece of the vocabulary at a time.

Softmax, entropy and argmax are kept up to date over the pieces, so that neither
all logits nor, on a mesh, the whole head exists anywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that 0 times it is 0: less than any logit.
_LOWEST = -1e30


class _Running(NamedTuple):
  """Statistics of the vocabulary's pieces so far, each `[B, T]`.

  With m the largest logit, total is sum e^(z - m), slope sum e^(z - m) (z - m)
  or None; hit is the target's logit, first the least id of the largest or None.
  """

  largest: jax.Array
  total: jax.Array
  slope: jax.Array | None
  hit: jax.Array
  first: jax.Array | None


def pieces(size: int, vocab_chunk: int, shards: int = 1) -> tuple[int, int]:
  """(number of pieces, columns of each per shard) for a vocabulary of `size`.

  Pieces that fill the vocabulary exactly are taken where there are some between
  half of `vocab_chunk` and all of it; else the last columns are padding.

  Raises:
    ValueError: vocab_chunk is below `shards`, a column for each.
  """
  if vocab_chunk < shards:
    raise ValueError(
      f"vocab_chunk={vocab_chunk} must be at least 1, and at least the"
      f" {shards} shards of the vocabulary."
    )
  width = -(-size // shards)
  least = -(-width // (vocab_chunk // shards))
  if size % shards == 0:
    for count in range(least, min(2 * least, width) + 1):
      if width % count == 0:
        return count, width // count
  return least, -(-width // least)


def chunked_scores(
  chunk_logits: Callable[[jax.Array], jax.Array],
  head_kernel: jax.Array,
  targets: jax.Array,
  *,
  vocab_chunk: int,
  shards: int = 1,
  entropy: bool = False,
  correct: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """Log-probs of targets, entropies, and whether the target is the argmax.

  Over pieces of V, with m the largest logit so far and m' the new one,

    total <- total e^(m - m') + sum_v e^(z_v - m')
    slope <- (slope + total (m - m')) e^(m - m') + sum_v e^(z_v - m') (z_v - m')

    logprob = z_target - m - log total
    entropy = log total - slope / total

  Each piece's logits are computed again in the backward pass. The gradient of
  `head_kernel` is written piece by piece; what `chunk_logits` closes over gets
  its gradient as a sum over pieces in its own dtype.

  Args:
    chunk_logits: Maps columns of the head `[D, v]` to logits `[B, T, v]`,
      float32.
    head_kernel: `[D, V]`.
    targets: `[B, T]`, integer.
    vocab_chunk: Columns of a piece, at most.
    shards: Number of devices that V is split over in equal runs. A piece takes
      as many columns of each, since it would otherwise be sent to all devices.
    entropy: Whether to compute the entropies.
    correct: Whether to find the argmax.

  Returns:
    Log-probs (NaN for a target outside [0, V)) and entropies, `[B, T]`,
    float32, and `[B, T]` bool; None where the flag is off.

  Reference: Milakov & Gimelshein 2018, arXiv:1805.02867, for the running sum.
  """
  width, size = head_kernel.shape
  count, columns = pieces(size, vocab_chunk, shards)
  padding = shards * count * columns - size
  kernel = head_kernel
  if padding:
    kernel = jnp.pad(kernel, [(0, 0), (0, padding)])
  kernel = kernel.reshape(width, shards, count, columns)
  kernel = jnp.moveaxis(kernel, 2, 0)
  # Ids of the first piece; the next one's follow `columns` later.
  run = count * columns * jnp.arange(shards)
  ids = (run[:, None] + jnp.arange(columns)).reshape(-1)

  def add(running: _Running, piece):
    number, piece_kernel = piece
    logits = chunk_logits(piece_kernel.reshape(width, -1))
    piece_ids = ids + number * columns
    if padding:
      logits = jnp.where(piece_ids < size, logits, _LOWEST)
    return _extended(running, logits, piece_ids, targets), None

  zeros = jnp.zeros(targets.shape, jnp.float32)
  start = _Running(
    largest=zeros + _LOWEST,
    total=zeros,
    slope=zeros if entropy else None,
    hit=zeros,
    first=jnp.full(targets.shape, size, jnp.int32) if correct else None,
  )
  # A loop keeps the two passes apart by itself.
  remade = jax.checkpoint(add, prevent_cse=False)
  found, _ = jax.lax.scan(remade, start, (jnp.arange(count), kernel))
  log_total = jnp.log(found.total)
  # Without this a target such as -100 would quietly score as 0.
  known = (targets >= 0) & (targets < size)
  return (
    jnp.where(known, found.hit - found.largest - log_total, jnp.nan),
    log_total - found.slope / found.total if entropy else None,
    found.first == targets if correct else None,
  )


def _extended(running, logits, ids, targets) -> _Running:
  """The statistics with one more piece: ids `[v]`, logits `[B, T, v]`.

  No result depends on m, so no gradient need pass through it.
  """
  highest = jnp.max(jax.lax.stop_gradient(logits), axis=-1)
  largest = jnp.maximum(running.largest, highest)
  change = running.largest - largest
  kept = jnp.exp(change)
  above = logits - largest[..., None]
  weights = jnp.exp(above)
  slope = first = None
  if running.slope is not None:
    slope = kept * (running.slope + running.total * change)
    slope += jnp.sum(weights * above, -1)
  if running.first is not None:
    first = _first_largest(running, logits, ids, highest)
  # Compare and sum instead of gather: it splits over a sharded vocabulary.
  hit = jnp.where(ids == targets[..., None], logits, 0.0)
  return _Running(
    largest=largest,
    total=kept * running.total + jnp.sum(weights, -1),
    slope=slope,
    hit=running.hit + jnp.sum(hit, -1),
    first=first,
  )


def _first_largest(running, logits, ids, highest) -> jax.Array:
  """The least id of the largest logit, in whatever order pieces take ids."""
  beyond = jnp.iinfo(jnp.int32).max
  here = jnp.min(jnp.where(logits == highest[..., None], ids, beyond), -1)
  before = jnp.where(running.largest >= highest, running.first, beyond)
  return jnp.where(
    highest >= running.largest, jnp.minimum(here, before), before
  )
