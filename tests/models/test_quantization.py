"""Quantised kernels against NumPy, and the model that stands on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.interop.storage import Storage
from perl_jax.models import quantization
from perl_jax.models.lora import LoraSpec
from tests import toys

SPEC = LoraSpec(rank=2, targets="all")

# Dettmers et al. 2023, appendix E.
LEVELS = np.array([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
  0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
])  # fmt: skip


def kernel(*shape):
  return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def nf4_by_hand(w, block):
  """Each block of inputs of each output alone: the nearest of 16 levels."""
  found = np.empty_like(w)
  for column in range(w.shape[1]):
    for start in range(0, len(w), block):
      values = w[start : start + block, column]
      scale = np.abs(values).max()
      kept = np.float32(jnp.bfloat16(scale))
      nearest = np.abs(values[:, None] / scale - LEVELS).argmin(axis=1)
      found[start : start + block, column] = LEVELS[nearest] * kept
  return found


def test_int8_is_the_nearest_step_of_each_output():
  w = kernel(96, 5) * [1, 2, 0.01, 30, 1]
  stored = quantization.quantize(w, "int8")
  steps = np.abs(w).max(axis=0) / 127.5
  np.testing.assert_allclose(stored.scale[0], steps, rtol=1e-6)
  found = np.asarray(quantization.as_array(stored, "float32"))
  np.testing.assert_allclose(found / steps, stored.qvalue, rtol=1e-5)
  assert np.all(np.abs(found - w) <= steps / 2 * (1 + 1e-4))


@pytest.mark.parametrize(("width", "block"), [(128, 64), (96, 32), (40, 8)])
def test_nf4_takes_the_nearest_level_of_each_block(width, block):
  w = kernel(width, 3) * np.linspace(0.1, 4, width)[:, None]
  stored = quantization.quantize(w.astype(np.float32), "nf4")
  assert stored.scale.shape == (width // block, 3)
  found = quantization.as_array(stored, "float32")
  np.testing.assert_allclose(found, nf4_by_hand(w, block), rtol=1e-5)


@pytest.mark.parametrize("dtype", quantization.QUANTIZED)
def test_a_stack_is_its_layers(dtype):
  w = kernel(3, 64, 8)
  stack = quantization.quantize(w, dtype)
  for layer in range(3):
    alone = quantization.quantize(w[layer], dtype)
    np.testing.assert_array_equal(stack.qvalue[layer], alone.qvalue)
    np.testing.assert_array_equal(stack.scale[layer], alone.scale)


def test_unknown_dtype():
  with pytest.raises(ValueError, match="int4"):
    quantization.quantize(kernel(4, 4), "int4")


def stored_tree(dtype, cfg):
  base = toys.random_params(cfg)
  storage = Storage(dtype)
  return params_lib.unflatten(
    {
      path: storage.put(path, jnp.asarray(leaf, storage.read_dtype))
      for path, leaf in params_lib.flatten(base).items()
    }
  )


def adapter_of(cfg):
  tree = toys.random_params(cfg, SPEC)
  return params_lib.partition(tree, "lora")[0]


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("dtype", [*quantization.QUANTIZED, "bfloat16"])
def test_model_and_gradients_are_those_of_the_dequantised_model(dtype, remat):
  cfg = toys.config("qwen2_tiny", remat=remat)
  stored, adapter = stored_tree(dtype, cfg), adapter_of(cfg)
  wide = jax.tree.map(
    lambda x: np.asarray(x, np.float32), params_lib.widen(stored, "float32")
  )
  tokens = toys.random_tokens(1, 3, 9)
  lengths = jnp.array([9, 4, 7])

  def loss(adapter, base):
    hidden = roles.hidden_states(
      roles.Backbone(cfg, SPEC),
      params_lib.combine(adapter, base),
      roles.right_padded(tokens, lengths),
    )
    real = jnp.arange(9) < lengths[:, None]
    return jnp.sum(jnp.where(real[..., None], hidden, 0.0) ** 3)

  value_and_grad = jax.jit(jax.value_and_grad(loss))
  found, grads = value_and_grad(adapter, stored)
  expected, wide_grads = value_and_grad(adapter, wide)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for path, leaf in params_lib.flatten(wide_grads).items():
    scale = np.abs(leaf).max()
    assert scale > 0, path
    np.testing.assert_allclose(
      params_lib.flatten(grads)[path] / scale, leaf / scale, atol=2e-5
    )


@pytest.mark.parametrize("dtype", quantization.QUANTIZED)
def test_the_wide_base_is_never_kept_for_the_backward_pass(dtype):
  cfg = toys.config(num_layers=16, width=64, mlp_width=256)
  stored, adapter = stored_tree(dtype, cfg), adapter_of(cfg)

  def loss(adapter, base):
    hidden = roles.hidden_states(
      roles.Backbone(cfg, SPEC),
      params_lib.combine(adapter, base),
      roles.right_padded(jnp.zeros((1, 2), jnp.int32), jnp.array([2])),
    )
    return jnp.sum(hidden)

  compiled = jax.jit(jax.grad(loss)).lower(adapter, stored).compile()
  wide = 4 * params_lib.count(stored["layers"])
  # A CPU unpacks four bits to bytes before the loop: a quarter of it.
  assert compiled.memory_analysis().temp_size_in_bytes < 0.45 * wide


@pytest.mark.parametrize("dtype", quantization.QUANTIZED)
def test_merge_is_wide_and_exact(dtype):
  cfg = toys.config()
  stored, adapter = stored_tree(dtype, cfg), adapter_of(cfg)
  merged = params_lib.merge(stored, adapter, SPEC)
  leaves = params_lib.flatten(adapter)
  path = "layers/mlp/down"
  wide = np.asarray(
    params_lib.flatten(params_lib.widen(stored, "float32"))[f"{path}/kernel"]
  )
  for layer in range(cfg.num_layers):
    a, b = (leaves[f"{path}/lora_{x}"][layer] for x in "ab")
    np.testing.assert_allclose(
      merged["layers"]["mlp"]["down"]["kernel"][layer],
      wide[layer] + SPEC.scale * (a @ b),
      rtol=1e-5,
      atol=1e-5,
    )


def test_fingerprint_sees_values_and_scales():
  cfg = toys.config()
  stored = stored_tree("nf4", cfg)
  first = params_lib.fingerprint(stored)
  assert first == params_lib.fingerprint(stored_tree("nf4", cfg))
  assert first != params_lib.fingerprint(stored_tree("int8", cfg))
  leaves = params_lib.flatten(stored)
  path = "layers/mlp/up/kernel"
  leaves[path] = leaves[path].replace(scale=leaves[path].scale * 2)
  assert first != params_lib.fingerprint(params_lib.unflatten(leaves))


@pytest.mark.parametrize("dtype", quantization.QUANTIZED)
def test_sharded_over_eight_devices(dtype):
  cfg = toys.config(width=64, mlp_width=128, vocab_size=32)
  stored, adapter = stored_tree(dtype, cfg), adapter_of(cfg)
  tokens = toys.random_tokens(2, 4, 8)

  def run(base):
    return roles.hidden_states(
      roles.Backbone(cfg, SPEC),
      params_lib.combine(adapter, base),
      roles.right_padded(tokens, jnp.full(4, 8)),
    )

  expected = jax.jit(run)(stored)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    placed = sharding.place(mesh, stored)
    up = placed["layers"]["mlp"]["up"]["kernel"]
    assert up.qvalue.sharding.shard_shape(up.qvalue.shape) == (2, 32, 64)
    assert up.scale.sharding.shard_shape(up.scale.shape) == (2, 1, 64)
    found = jax.jit(run)(placed)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
