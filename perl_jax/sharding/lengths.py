"""Microbatches of rows of similar length, each cut to the length it needs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax.sharding import placing
from perl_jax.sharding.layout import constrain
from perl_jax.sharding.rules import BATCH_AXES


def parts_by_length(
  batch: Any, lengths: jax.Array, count: int
) -> tuple[Any, jax.Array]:
  """`strided_parts` of the batch with the longest rows in the first part.

  Args:
    batch: Arrays with a row of the batch in each row.
    lengths: What the rows are sorted by, `[B]`.
    count: Number of parts.

  Returns:
    (parts, rows): row p of part c is row `rows[p * count + c]` of the batch,
    `[B]`, int32.
  """
  order = jnp.argsort(-lengths, stable=True)
  rows = order.reshape(count, -1).T.reshape(-1)
  dealt = jax.tree.map(lambda x: constrain(x[rows], BATCH_AXES), batch)
  return placing.strided_parts(dealt, count), rows


class Lengths(NamedTuple):
  """How rows of a batch are measured and cut.

  Attributes:
    buckets: Lengths to cut to, in ascending order; the last holds every row.
    of: `of(batch)`, the tokens that each row needs, `[B]`, int32.
    cut: `cut(batch, length)`, the batch with rows of that length.
  """

  buckets: tuple[int, ...]
  of: Callable[[Any], jax.Array]
  cut: Callable[[Any, int], Any]

  def on_bucket(self, run: Callable[[Any], Any], batch: Any) -> Any:
    """`run` of a batch that is cut to the first bucket with room for its rows.

    One of the compiled branches runs, the same on all devices. Under `vmap`
    over batches all would: the lengths of one batch then say nothing.

    Args:
      run: Gives arrays of the same shapes, whatever the length.
      batch: The batch.
    """
    needed = jnp.max(self.of(batch))
    at = jnp.sum(needed > jnp.asarray(self.buckets[:-1], jnp.int32))
    branches = [
      lambda batch, n=n: run(self.cut(batch, n)) for n in self.buckets
    ]
    return jax.lax.switch(at, branches, batch)
