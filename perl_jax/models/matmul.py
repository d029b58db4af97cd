"""A matrix product whose gradient transposes the narrower of two operands.

The gradient of a kernel, x^T g, sums over the rows of both. One of them is read
across its rows, which a CPU does with a transposed copy of it. JAX's own rule
always copies g; where a layer widens, as the gate of an MLP and the scores of
attention do, that is the larger by far, and the copy is fused with all that
made it. On a GPU or TPU, whose products take either order, it makes no
difference.
"""

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: jax.Array, dtype: str | None = None) -> jax.Array:
  """x W; its gradients are g W^T and, summed over rows, x^T g.

  An operand without a gradient costs no backward product, and no residual is
  kept for it. Forward-mode differentiation is not supported.

  Args:
    x: `[*batch, *rows, in]`.
    w: `[*batch, in, out]`, in the dtype of `x`; all axes but two are batch.
    dtype: Dtype of the sums and the result; None is that of the operands.

  Returns:
    `[*batch, *rows, out]`.
  """
  return _matmul(x, w, w.ndim - 2, dtype)


def _forward_product(x, w, batch, dtype):
  return _product(x, w, ((x.ndim - 1,), (batch,)), batch, dtype)


def _product(x, y, contracted, batch, dtype):
  axes = tuple(range(batch))
  return jax.lax.dot_general(
    x, y, (contracted, (axes, axes)), preferred_element_type=dtype
  )


def _forward(x, w, batch, dtype):
  # Not by way of `_matmul`: what saves dots under remat has to see one.
  y = _forward_product(x.value, w.value, batch, dtype)
  kept = x.value if w.perturbed else None, w.value if x.perturbed else None
  return y, kept


def _backward(batch, dtype, residuals, g):
  x, w = residuals
  if isinstance(g, jax.custom_derivatives.SymbolicZero):
    g = jnp.zeros(g.shape, g.dtype)
  dx = dw = None
  if w is not None:
    contracted = (g.ndim - 1,), (batch + 1,)
    dx = _product(g, w, contracted, batch, dtype).astype(w.dtype)
  if x is not None:
    rows = tuple(range(batch, g.ndim - 1))
    narrow, wide = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    dw = _product(narrow, wide, (rows, rows), batch, dtype).astype(x.dtype)
    dw = dw if narrow is x else dw.mT
  return dx, dw


_matmul = jax.custom_vjp(_forward_product, nondiff_argnums=(2, 3))
_matmul.defvjp(_forward, _backward, symbolic_zeros=True)
