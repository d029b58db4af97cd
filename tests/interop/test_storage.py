"""Bytes and quantisation error that are counted while a base loads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax.interop.storage import Storage
from perl_jax.models import quantization


def kernel(*shape):
  return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_unknown_dtype():
  with pytest.raises(ValueError, match=r"base_dtype='int4'.*int8, nf4"):
    Storage("int4")


@pytest.mark.parametrize("dtype", quantization.QUANTIZED)
def test_storage_counts_bytes_and_error(dtype):
  storage = Storage(dtype)
  w, norm = kernel(2, 64, 16), kernel(2, 16)
  given = jnp.asarray(w, storage.read_dtype)
  stored = storage.put("layers/attention/q/kernel", given)
  kept = storage.put("layers/attention_norm/scale", jnp.asarray(norm))
  assert quantization.is_quantized(stored) and kept.dtype == jnp.bfloat16
  scales = {"int8": 2 * 16 * 4, "nf4": 2 * 16 * 2}[dtype]
  values = {"int8": w.size, "nf4": w.size // 2}[dtype]
  assert storage.bytes == values + scales + 2 * norm.size
  assert params_lib.nbytes({"a": stored, "b": kept}) == storage.bytes
  # What the compiler takes for them is what was counted.
  compiled = jax.jit(lambda x: x).lower((stored, kept)).compile()
  assert compiled.memory_analysis().argument_size_in_bytes == storage.bytes
  given = np.asarray(given, np.float32)
  wide = np.asarray(quantization.as_array(stored, "float32"))
  error = np.sqrt(((wide - given) ** 2).sum() / (given**2).sum())
  assert f"{error:.2%}" in storage.describe()
  assert params_lib.count({"a": stored, "b": kept}) == w.size + norm.size
