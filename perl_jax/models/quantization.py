"""Kernels of a frozen base in 8 or 4 bits, by qwix.

A quantised kernel is a `qwix.QArray` leaf in the base tree: `qvalue` in int8 or
as indices of the 16 levels of NormalFloat4, and the `scale` of each group of
values. Embedding, norms and biases stay in bfloat16.

Reference: Dettmers et al. 2023, arXiv:2305.14314 (NF4).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from perl_jax.models.matmul import matmul

QUANTIZED = ("int8", "nf4")
DTYPES = ("float32", "bfloat16", *QUANTIZED)
BLOCK = 64

# Dtype of the leaves that are not kernels, and of the scales of "nf4".
REST_DTYPE = "bfloat16"


def is_quantized(leaf: object) -> bool:
  """Whether a leaf of a tree is a quantised kernel."""
  return isinstance(leaf, qwix.QArray)


def quantize(kernel: jax.Array, dtype: str) -> qwix.QArray:
  """Quantises a kernel to 8 or 4 bits.

  "int8": round(W / s), s = max |W| / 127.5 of each output
  "nf4": the nearest of 16 levels to W / s, s = max |W| of each output in
      blocks of 64 inputs (or the largest divisor of both)

  Args:
    kernel: `[in, out]`, or stacked `[L, in, out]`; then one layer at a
      time, so that temporaries are no larger than a layer.
    dtype: "int8" or "nf4".

  Raises:
    ValueError: `dtype` is neither.
  """
  if dtype not in QUANTIZED:
    raise ValueError(f"dtype={dtype!r}: choose one of {QUANTIZED}.")
  if kernel.ndim == 3:
    return jax.lax.map(lambda layer: quantize(layer, dtype), kernel)
  kernel = kernel.astype(jnp.float32)
  if dtype == "int8":
    return qwix.quantize(kernel, jnp.int8, channelwise_axes=(1,))
  return qwix.quantize(
    kernel,
    "nf4",
    channelwise_axes=(1,),
    tiled_axes={0: math.gcd(kernel.shape[0], BLOCK)},
    scale_dtype=REST_DTYPE,
  )


def as_array(leaf: jax.Array | qwix.QArray, dtype: str) -> jax.Array:
  """A leaf, quantised or not, as an array of a float dtype."""
  if not is_quantized(leaf):
    return leaf.astype(dtype)
  leaf = leaf.astype(jnp.dtype(dtype))
  return _from_nf4(leaf) if leaf.qtype == "nf4" else qwix.dequantize(leaf)


def _from_nf4(leaf: qwix.QArray) -> jax.Array:
  """`qwix.dequantize` of an "nf4" leaf, `[..., in, out]`, the same bits.

  qwix looks the levels up in one flat array, for which a mesh would gather all
  of a kernel that is split by its outputs.
  """
  indices, scale = leaf.qvalue, leaf.scale
  table = qwix.QArray(
    jnp.arange(16, dtype=indices.dtype), jnp.ones((1,)), qtype="nf4"
  )
  levels = qwix.dequantize(table)[indices].astype(scale.dtype)
  *layers, blocks, width = scale.shape
  levels = levels.reshape(*layers, blocks, -1, width)
  return (levels * scale[..., None, :]).reshape(indices.shape)


def project(
  x: jax.Array,
  kernel: jax.Array | qwix.QArray,
  dtype: str,
  gather: Callable[[Any], Any] | None = None,
) -> jax.Array:
  """x W in `dtype`, for a kernel `[in, out]` that is stored in any dtype.

  Only x and the stored kernel are kept for the backward pass, which gathers and
  dequantises the kernel again: under a scan over layers the wide kernels of all
  layers would be kept.

  Args:
    x: Inputs, `[..., in]`.
    kernel: The kernel as it is stored.
    dtype: Dtype of the product.
    gather: Gathers the kernel on a mesh. It is called where the kernel has the
      fewest bytes: before a quantised one is dequantised, after another is
      cast.

  Returns:
    `[..., out]`.
  """
  as_it_is = not is_quantized(kernel) and kernel.dtype == jnp.dtype(dtype)
  if as_it_is and gather is None:
    return matmul(x, kernel)
  gather = gather or (lambda kernel: kernel)

  def product(x, kernel):
    if is_quantized(kernel):
      return matmul(x, as_array(gather(kernel), dtype))
    return matmul(x, gather(as_array(kernel, dtype)))

  return jax.checkpoint(product, prevent_cse=False)(x, kernel)


def nbytes(tree: Any) -> int:
  """Bytes of all leaves; a 4-bit value takes half a byte."""

  def bits(dtype):
    # NumPy stores a 4-bit value in a byte; a device does not.
    if jnp.issubdtype(dtype, jnp.integer):
      return jnp.iinfo(dtype).bits
    return 8 * jnp.dtype(dtype).itemsize

  return sum(
    int(np.prod(x.shape)) * bits(x.dtype) // 8 for x in jax.tree.leaves(tree)
  )
