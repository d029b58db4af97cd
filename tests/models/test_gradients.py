"""Gradients of the decoder, and what rematerialisation leaves and keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax.models import transformer
from perl_jax.models.lora import LoraSpec
from tests import toys
from tests.models import reference
from tests.models.rows import TIME, A, C, D, layout

LORA = LoraSpec(rank=2, targets="all")
REMAT_FAMILY = "gemma3_tiny"


def loss_of(cfg):
  """A loss with LoRA leaves in it; the whole tree has a gradient."""
  module = transformer.Transformer(cfg, LORA)
  arrays = layout([[(0, A)], [(0, C), (6, D)]])
  weights = np.random.default_rng(4).normal(size=(2, TIME, cfg.width))

  def loss(params):
    hidden, _ = module.apply({"params": params}, *arrays)
    return jnp.sum(hidden * weights.astype(np.float32))

  return loss


@functools.cache
def loss_and_gradient(remat, unroll):
  cfg = toys.config(REMAT_FAMILY, remat=remat, scan_unroll=unroll)
  params = toys.random_params(cfg, LORA)
  value, grads = jax.jit(jax.value_and_grad(loss_of(cfg)))(params)
  return float(value), params_lib.flatten(jax.device_get(grads))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("remat", "unroll"), [("dots", 1), ("full", 1), ("none", 2)]
)
def test_rematerialisation_and_unrolling_change_nothing(remat, unroll):
  value, grads = loss_and_gradient("none", 1)
  found_value, found = loss_and_gradient(remat, unroll)
  np.testing.assert_allclose(found_value, value, rtol=1e-5)
  assert found.keys() == grads.keys()
  for path, grad in grads.items():
    # Adapters too: checkpointing has silently cut their gradients elsewhere.
    size = np.abs(grad).max()
    assert size > 1e-3, path
    np.testing.assert_allclose(
      found[path], grad, rtol=1e-5, atol=1e-5 * size, err_msg=path
    )


@pytest.mark.slow
def test_gradient_equals_a_finite_difference():
  """Along a random direction, of the NumPy model in float64."""
  cfg = toys.config(REMAT_FAMILY)
  params = toys.random_params(cfg, LORA)
  leaves = params_lib.flatten(params)
  rng = np.random.default_rng(8)
  direction = {p: rng.normal(size=x.shape) for p, x in leaves.items()}
  weights = np.random.default_rng(4).normal(size=(2, TIME, cfg.width))

  def loss(step):
    moved = params_lib.unflatten(
      {p: x + step * direction[p] for p, x in leaves.items()}
    )
    run = functools.partial(
      reference.hidden_states, cfg, moved, lora_scale=LORA.scale
    )
    return (
      np.sum(run(A) * weights[0])
      + np.sum(run(C) * weights[1, :6])
      + np.sum(run(D) * weights[1, 6:])
    )

  value, grads = loss_and_gradient("none", 1)
  np.testing.assert_allclose(value, loss(0.0), rtol=2e-5)
  slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
  found = sum(np.sum(np.float64(grads[p]) * d) for p, d in direction.items())
  np.testing.assert_allclose(found, slope, rtol=1e-4)


def kept_bytes(remat):
  """Bytes that the backward pass keeps from the forward pass, by shapes."""
  cfg = toys.config(REMAT_FAMILY, remat=remat)
  params = toys.shapes(cfg, LORA)
  residuals = jax.eval_shape(
    lambda params: jax.vjp(loss_of(cfg), params)[1], params
  )
  return params_lib.nbytes(residuals)


def test_rematerialisation_keeps_less():
  none, dots, full = (kept_bytes(r) for r in ("none", "dots", "full"))
  assert full < dots < none
