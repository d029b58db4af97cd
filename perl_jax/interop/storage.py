"""Converts a frozen base to the dtype it is kept in, leaf by leaf."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax.models import quantization
from perl_jax.models.quantization import DTYPES, QUANTIZED, REST_DTYPE


@dataclasses.dataclass
class Storage:
  """Converts the leaves of a base to the dtype it is kept in, and keeps count.

  Counting reads numbers from the device, so that `put` waits for each leaf.

  Attributes:
    dtype: One of `quantization.DTYPES`. "float32" and "bfloat16" cast every
      leaf; "int8" and "nf4" quantise the kernels of the layers and cast the
      rest to bfloat16.
    parameters: Number of parameters of the leaves so far.
    bytes: Bytes that these take as they are stored.
    squared_error: Sum of (quantised - given)^2 over the kernels.
    squared_norm: Sum of given^2 over the kernels.
  """

  dtype: str
  parameters: int = 0
  bytes: int = 0
  squared_error: float = 0.0
  squared_norm: float = 0.0

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(
        f"base_dtype={self.dtype!r}: choose one of {', '.join(DTYPES)}."
      )

  @property
  def read_dtype(self) -> str:
    """Dtype in which to read a leaf before `put` converts it."""
    return REST_DTYPE if self.dtype in QUANTIZED else self.dtype

  def put(self, path: str, leaf: Any) -> Any:
    """Converts one leaf and counts it.

    Args:
      path: Path of the leaf, as `params.flatten` writes it.
      leaf: Array in `read_dtype`.

    Returns:
      The array, or a `qwix.QArray` if the leaf was quantised.
    """
    if self.dtype in QUANTIZED and path.endswith("/kernel"):
      stored = jax.jit(quantization.quantize, static_argnums=1)(
        leaf, self.dtype
      )
      error, norm = _squares(leaf, stored)
      self.squared_error += float(error)
      self.squared_norm += float(norm)
    else:
      stored = jnp.asarray(leaf, self.read_dtype)
    self.parameters += int(np.prod(leaf.shape))
    self.bytes += quantization.nbytes(stored)
    return stored

  def describe(self) -> str:
    """One line for the log: size, saving over bfloat16, quantisation error."""
    before = self.parameters * jnp.dtype(REST_DTYPE).itemsize
    text = f"base in {self.dtype}: {self.bytes / 1e6:.1f} MB"
    if self.dtype not in QUANTIZED:
      return text
    error = (self.squared_error / self.squared_norm) ** 0.5
    return (
      f"{text}, {(before - self.bytes) / 1e6:.1f} MB less than in"
      f" {REST_DTYPE} ({self.bytes / before:.0%} of it); relative error of the"
      f" quantised weights {error:.2%} (root mean square)"
    )


@jax.jit
def _squares(kernel, stored):
  """Sums of (stored - kernel)^2 and kernel^2, a layer at a time."""

  def layer(pair):
    exact = pair[0].astype(jnp.float32)
    error = quantization.as_array(pair[1], "float32") - exact
    return jnp.sum(error * error), jnp.sum(exact * exact)

  if kernel.ndim == 2:
    return layer((kernel, stored))
  errors, norms = jax.lax.map(layer, (kernel, stored))
  return jnp.sum(errors), jnp.sum(norms)
