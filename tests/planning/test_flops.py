"""FLOPs against what is written on paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import PartitionSpec as P

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.models import presets
from perl_jax.models.lora import LoraSpec
from perl_jax.planning import flops


def count(fn, *args):
  return flops.matmul_flops(jax.jit(fn).trace(*args).jaxpr)


def ones(*shape):
  return jnp.ones(shape)


def test_a_product():
  assert count(jnp.matmul, ones(3, 5), ones(5, 7)) == 2 * 3 * 5 * 7
  batched = functools.partial(jnp.einsum, "bik,bkj->bij")
  found = count(batched, ones(4, 3, 5), ones(4, 5, 7))
  assert found == 4 * 2 * 3 * 5 * 7


def test_elementwise_work_is_not_counted():
  assert count(lambda x: jnp.tanh(x) + x.sum(), ones(8)) == 0


def test_a_scan_counts_each_trip():
  def fn(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

  assert count(fn, ones(4, 8), ones(8, 8)) == 5 * 2 * 4 * 8 * 8


def test_the_backward_pass_and_recomputation_count():
  """Forward, x gradient, w gradient; once more with `jax.checkpoint`."""

  def fn(remat, x, w):
    body = lambda c, _: (jnp.tanh(c @ w), None)  # noqa: E731
    body = jax.checkpoint(body) if remat else body
    return jnp.sum(jax.lax.scan(body, x, None, length=5)[0] ** 2)

  one = 5 * 2 * 4 * 8 * 8
  for remat, passes in ((False, 3), (True, 4)):
    grad = jax.grad(functools.partial(fn, remat), argnums=(0, 1))
    assert count(grad, ones(4, 8), ones(8, 8)) == passes * one
  grad = jax.grad(functools.partial(fn, False), argnums=0)
  assert count(grad, ones(4, 8), ones(8, 8)) == 2 * one  # w is frozen


def test_a_loop_that_may_stop_early_counts_to_its_end():
  def fn(x):
    return jax.lax.while_loop(
      lambda s: (s[0] < 7) & ~jnp.all(s[1] > 1e9),
      lambda s: (s[0] + 1, s[1] @ s[1]),
      (0, x),
    )

  assert count(fn, ones(8, 8)) == 7 * 2 * 8**3


def test_a_loop_without_a_limit_is_an_error():
  def fn(x, limit):
    return jax.lax.while_loop(
      lambda s: s[0] < limit, lambda s: (s[0] + 1, s[1] @ s[1]), (0, x)
    )

  with pytest.raises(ValueError, match="compares with no constant"):
    count(fn, ones(2, 2), 3)


def test_the_larger_branch_counts():
  def fn(flag, x):
    return jax.lax.cond(flag, lambda x: x @ x, lambda x: x @ x @ x, x)

  assert count(fn, True, ones(4, 4)) == 2 * 2 * 4**3


def test_a_shard_map_counts_all_devices():
  mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
  fn = jax.shard_map(
    lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()),
    out_specs=P("data"),
  )  # fmt: skip
  assert count(fn, ones(8, 3), ones(3, 5)) == 2 * 8 * 3 * 5


def test_a_kernel_counts_its_grid():
  def kernel(x, w, out):
    out[...] = x[...] @ w[...]

  fn = pallas.pallas_call(
    kernel,
    grid=(4,),
    in_specs=[
      pallas.BlockSpec((8, 16), lambda i: (i, 0)),
      pallas.BlockSpec((16, 16), lambda i: (0, 0)),
    ],
    out_specs=pallas.BlockSpec((8, 16), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
  )
  assert count(fn, ones(32, 16), ones(16, 16)) == 2 * 32 * 16 * 16


def test_a_transformer():
  """All of its products by hand: projections and attention, no head."""
  model = presets.preset("tiny", vocab_size=64, max_len=16)
  rows, length = 3, 16
  params = roles.init_base(jax.random.key(0), model)
  backbone = roles.Backbone(model, LoraSpec())
  lengths = np.full(rows, length, np.int32)

  def forward(tokens):
    sequence = roles.right_padded(tokens, lengths)
    return roles.hidden_states(backbone, params, sequence)

  width, heads = model.width, model.num_heads * model.head_dim
  kv = model.num_kv_heads * model.head_dim
  weights = width * heads * 2 + width * kv * 2 + 3 * width * model.mlp_width
  attention = 2 * length * heads  # scores and mix, for each token
  expected = 2 * rows * length * model.num_layers * (weights + attention)
  tokens = np.zeros((rows, length), np.int32)
  assert count(forward, tokens) == expected
  kernels = params_lib.flatten(params)
  assert weights * model.num_layers == sum(
    leaf.size for path, leaf in kernels.items() if path.endswith("kernel")
  )
