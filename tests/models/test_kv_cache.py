"""Layers and caches that are split, against the stacks that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax.models import kv_cache, quantization
from tests import toys

CONFIG = toys.config("tiny", num_layers=3)


@pytest.mark.parametrize("stored", ["bfloat16", "int8", "nf4"])
def test_split_layers_are_those_of_the_stack(stored):
  """Kernels are cast to the compute dtype, but for quantised ones."""
  leaves = params_lib.flatten(toys.random_params(CONFIG))
  for path, leaf in leaves.items():
    if path.endswith("kernel") and stored in quantization.QUANTIZED:
      leaves[path] = quantization.quantize(jnp.asarray(leaf), stored)
    else:
      leaves[path] = jnp.asarray(leaf, "bfloat16")
  params = params_lib.unflatten(leaves)
  split = kv_cache.split_layers(CONFIG, params)
  assert set(split) == {*params, *(f"layers_{i}" for i in range(3))} - {
    "layers"
  }
  stack = params_lib.flatten(params["layers"])
  for i in range(3):
    layer = params_lib.flatten(split[f"layers_{i}"])
    assert set(layer) == set(stack)
    for path, leaf in layer.items():
      quantized = quantization.is_quantized(stack[path])
      assert quantization.is_quantized(leaf) == quantized
      if not quantized:
        kept = "float32" if path.endswith("kernel") else "bfloat16"
        assert leaf.dtype == kept, path
      np.testing.assert_array_equal(
        quantization.as_array(leaf, "float32"),
        quantization.as_array(stack[path], "float32")[i],
      )


def test_a_cache_that_grew_and_was_split():
  cache = kv_cache.init_cache(CONFIG, 2, 4)
  cache = jax.tree.map(lambda x: x + 1, cache)
  grown = cache.grown(3)
  heads = CONFIG.num_kv_heads
  assert grown.keys.shape == (3, 2, heads, 7, CONFIG.head_dim)
  assert grown.positions.shape == grown.segments.shape == (2, 7)
  for old, new, axis in (
    (cache.values, grown.values, 3),
    (cache.segments, grown.segments, 1),
  ):
    kept, added = np.split(np.asarray(new), [4], axis=axis)
    np.testing.assert_array_equal(kept, old)
    assert not added.any()
  assert grown.length == cache.length
  split = grown.split()
  assert [x.shape for x in split.keys] == [(1, *grown.keys.shape[1:])] * 3
  np.testing.assert_array_equal(np.concatenate(split.values), grown.values)
