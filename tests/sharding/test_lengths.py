"""Rows that are dealt to microbatches by their length, on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import sharding

LENGTHS = np.array([3, 9, 1, 4, 9, 2, 6, 5, 0, 8, 7, 3, 1, 2, 12, 4], np.int32)


def dealt(batch, lengths, count):
  run = jax.jit(sharding.parts_by_length, static_argnums=2)
  return run(batch, lengths, count)


def test_the_longest_rows_are_in_the_first_part_and_on_every_device():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  rows = {"tokens": np.arange(48).reshape(16, 3), "lengths": LENGTHS}
  with jax.set_mesh(mesh):
    placed = sharding.place_batch(mesh, rows)
    parts, order = dealt(placed, placed["lengths"], 4)
  assert parts["tokens"].shape == (4, 4, 3)
  expected = np.sort(LENGTHS)[::-1].reshape(4, 4)
  np.testing.assert_array_equal(
    np.sort(parts["lengths"], axis=1)[:, ::-1], expected
  )
  for part in range(4):
    for place in range(4):
      row = order[place * 4 + part]
      np.testing.assert_array_equal(
        parts["tokens"][part, place], rows["tokens"][row]
      )
      assert parts["lengths"][part, place] == LENGTHS[row]
  # A part is split over the batch axes, a row for each of them.
  shard = parts["tokens"].sharding.shard_shape(parts["tokens"].shape)
  assert shard == (4, 1, 3)


@pytest.mark.parametrize(
  ("longest", "columns"), [(0, 2), (2, 2), (3, 5), (5, 5), (6, 12), (12, 12)]
)
def test_a_part_is_cut_to_the_first_bucket_with_room(longest, columns):
  of = sharding.Lengths(
    (2, 5, 12),
    lambda batch: batch[0],
    lambda batch, n: (batch[0], batch[1][:, :n]),
  )

  @jax.jit
  def run(lengths, tokens):
    return of.on_bucket(
      lambda cut: jnp.int32(cut[1].shape[1]), (lengths, tokens)
    )

  assert run(jnp.array([longest, 0]), jnp.zeros((2, 12))) == columns
