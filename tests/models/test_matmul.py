"""A product, its gradients, and which operands they keep and transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.models.matmul import matmul

WIDER = (4, 5), (5, 9)
NARROWER = (4, 9), (9, 5)
IN_ROWS = (2, 3, 5), (5, 9)
BATCHED = (2, 3, 2, 4, 9), (2, 3, 9, 5)
SHAPES = [WIDER, NARROWER, IN_ROWS, BATCHED]


def operands(rng, shapes):
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_hand(x, w, g):
  """Product and gradients, a number at a time, in float64."""
  *batch, inner, outer = w.shape
  y = np.zeros(g.shape)
  dx, dw = np.zeros(x.shape), np.zeros(w.shape)
  for index in np.ndindex(*x.shape[:-1]):
    lead = index[: len(batch)]
    for i, o in np.ndindex(inner, outer):
      a, b, c = x[*index, i], w[*lead, i, o], g[*index, o]
      y[*index, o] += np.float64(a) * b
      dx[*index, i] += np.float64(c) * b
      dw[*lead, i, o] += np.float64(a) * c
  return y, dx, dw


@pytest.mark.parametrize("shapes", SHAPES)
def test_product_and_gradients(rng, shapes):
  x, w = operands(rng, shapes)
  g = rng.normal(size=(*x.shape[:-1], w.shape[-1])).astype(np.float32)

  @jax.jit
  def run(x, w, g):
    y, pull = jax.vjp(matmul, x, w)
    return y, *pull(g)

  for found, expected in zip(run(x, w, g), by_hand(x, w, g), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_narrower_operand_is_the_one_that_is_transposed(rng, shapes):
  """A product's first operand is what a CPU copies to read it otherwise."""
  x, w = operands(rng, shapes)
  g = jax.eval_shape(matmul, x, w)
  jaxpr = jax.make_jaxpr(lambda x, g: jax.vjp(lambda w: matmul(x, w), w)[1](g))(
    x, g
  )
  product = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"][-1]
  first, second = (operand.aval.shape[-1] for operand in product.invars)
  assert (first, second) == (5, 9)


def test_nothing_is_kept_that_no_gradient_needs(rng):
  x, w = map(jnp.asarray, operands(rng, WIDER))

  def kept(pull):
    return {leaf.shape for leaf in jax.tree.leaves(pull)}

  assert kept(jax.vjp(lambda x: matmul(x, w), x)[1]) == {w.shape}
  assert kept(jax.vjp(lambda w: matmul(x, w), w)[1]) == {x.shape}
  assert kept(jax.vjp(matmul, x, w)[1]) == {x.shape, w.shape}


def test_rematerialisation_can_save_the_product(rng):
  """A policy that saves dots has to find one to save."""
  x, w = operands(rng, WIDER)

  def dots(policy):
    def total(x, w):
      return jnp.sum(jnp.sin(matmul(x, w)))

    rematted = jax.checkpoint(total, policy=policy)
    run = jax.jit(jax.value_and_grad(rematted, (0, 1)))
    return run.lower(x, w).as_text().count("dot_general")

  assert dots(jax.checkpoint_policies.dots_saveable) == 3
  assert dots(None) == 4


def test_sums_in_another_dtype(rng):
  x, w = (jnp.asarray(a, jnp.bfloat16) for a in operands(rng, WIDER))
  y, pull = jax.vjp(lambda x, w: matmul(x, w, "float32"), x, w)
  expected = np.float64(x) @ np.float64(w)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
  dx, dw = pull(g)
  assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, x.dtype, w.dtype)
  _, expected_dx, expected_dw = by_hand(*map(np.float64, (x, w, g)))
  np.testing.assert_allclose(dx, expected_dx, rtol=1e-2, atol=1e-2)
  np.testing.assert_allclose(dw, expected_dw, rtol=1e-2, atol=1e-2)


def test_vmapped(rng):
  x, w = operands(rng, WIDER)
  many = np.stack([w, 2 * w, -w])

  def gradient(w):
    return jax.grad(lambda w: jnp.sum(jnp.sin(matmul(x, w))))(w)

  each = [gradient(one) for one in many]
  np.testing.assert_allclose(
    jax.vmap(gradient)(many), np.stack(each), rtol=1e-5, atol=1e-6
  )
