"""Parts of a block, each against a formula written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.models import attention, heads, layers
from tests import toys
from tests.models import reference

TOLERANCE = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm(rng, plus_one):
  x = rng.normal(size=(2, 3, 8)).astype(np.float32)
  scale = rng.normal(size=8).astype(np.float32)
  module = layers.RMSNorm(eps=0.1, plus_one=plus_one)
  found = module.apply({"params": {"scale": scale}}, x)
  expected = reference.rms_norm(
    np.float64(x), np.float64(scale), eps=0.1, plus_one=plus_one
  )
  np.testing.assert_allclose(found, expected, **TOLERANCE)
  start = module.init(jax.random.key(0), x)["params"]["scale"]
  # Both start as a plain norm.
  assert np.all(start == (0.0 if plus_one else 1.0))


def test_rms_norm_is_computed_in_float32():
  """300^2 is far over what 8 bits of mantissa add up without loss."""
  x = jnp.asarray([[300.0, 1.0, -2.0, 0.5]], jnp.bfloat16)
  module = layers.RMSNorm(eps=1e-6, plus_one=False)
  found = module.apply({"params": {"scale": np.ones(4, np.float32)}}, x)
  assert found.dtype == jnp.bfloat16
  exact = np.float64(x) / np.sqrt(np.mean(np.float64(x) ** 2) + 1e-6)
  np.testing.assert_array_equal(found, jnp.asarray(exact, jnp.bfloat16))


@jax.jit
def turn(x, positions, theta):
  frequencies = theta ** (-jnp.arange(0, 8, 2) / 8)
  rotary = layers.rotary_angles(positions, frequencies)
  return layers.rotate(x, rotary)


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
def test_rotation(rng, theta):
  positions = np.array([[0, 1, 5], [100, 2, 77]], np.int32)
  x = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
  found = np.asarray(turn(x, positions, theta))
  expected = np.empty(x.shape)
  for b, t, n in np.ndindex(x.shape[:3]):
    expected[b, t, n] = reference.rope(
      np.float64(x[b, t, n]), positions[b, t], theta
    )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
  np.testing.assert_array_equal(found[0, 0], x[0, 0])  # position 0


@pytest.mark.parametrize("truncate", [True, False])
def test_frequencies_of_yarn(truncate):
  """By the turns of each pair: few are divided, many are kept."""
  config = toys.config(
    head_dim=64, rope_type="yarn", rope_factor=4.0, rope_theta=1e6,
    rope_low_freq_factor=1.0, rope_high_freq_factor=32.0,
    rope_original_max_len=4096, rope_truncate=truncate,
  )  # fmt: skip
  plain = [1e6 ** (-i / 32) for i in range(32)]

  def pair_of(turns):
    """Where a line through the logarithms of the turns has so many."""
    logs = np.log([4096 * f / (2 * np.pi) for f in plain])
    return np.log(turns) / (logs[1] - logs[0]) - logs[0] / (logs[1] - logs[0])

  first, last = pair_of(32.0), pair_of(1.0)
  if truncate:
    first, last = np.floor(first), np.ceil(last)
  expected = []
  for i, f in enumerate(plain):
    share = min(max((i - first) / (last - first), 0.0), 1.0)
    expected.append(share * f / 4 + (1 - share) * f)
  found = layers.rotary_frequencies(config)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found[0] == 1.0 and found[-1] == pytest.approx(plain[-1] / 4)


def test_a_factor_on_queries_and_keys(rng):
  positions = np.array([[3, 4]], np.int32)
  frequencies = np.array([1.0, 0.1], np.float32)
  x = rng.normal(size=(1, 2, 1, 4)).astype(np.float32)
  one = layers.rotate(x, layers.rotary_angles(positions, frequencies))
  two = layers.rotate(x, layers.rotary_angles(positions, frequencies, 1.5))
  np.testing.assert_allclose(two, 1.5 * one, rtol=1e-6)


def test_rotated_products_depend_on_the_distance_alone(rng):
  q, k = rng.normal(size=(2, 8)).astype(np.float32)

  def product(query_at, key_at):
    at = np.array([[query_at, key_at]], np.int32)
    turned = np.asarray(turn(np.stack([q, k])[None, :, None], at, 100.0))
    return float(turned[0, 0, 0] @ turned[0, 1, 0])

  np.testing.assert_allclose(product(9, 4), product(25, 20), rtol=1e-4)
  assert abs(product(9, 4) - product(4, 9)) > 0.1


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attend_with_grouped_heads(rng, softcap):
  batch, time, slots, heads_, shared, width = 2, 3, 5, 6, 2, 4
  q = rng.normal(size=(batch, time, heads_, width)).astype(np.float32)
  k = rng.normal(size=(batch, slots, shared, width)).astype(np.float32)
  v = rng.normal(size=(batch, slots, shared, width)).astype(np.float32)
  mask = rng.random((batch, time, slots)) < 0.6
  mask[..., 0] = True
  run = jax.jit(functools.partial(attention.attend, scale=0.7, softcap=softcap))
  found = run(q, k, v, mask)
  expected = np.empty((batch, time, heads_, width))
  for b, t, n in np.ndindex(batch, time, heads_):
    seen = np.flatnonzero(mask[b, t])
    scores = np.array([0.7 * q[b, t, n] @ k[b, s, n // 3] for s in seen])
    weights = reference.softmax(reference.soft_cap(np.float64(scores), softcap))
    expected[b, t, n] = weights @ v[b, seen, n // 3]
  np.testing.assert_allclose(
    found, expected.reshape(batch, time, -1), **TOLERANCE
  )


@pytest.mark.parametrize(
  ("time", "blocks"),
  [
    (1, [(1, 1)]),
    (128, [(128, 128)]),
    (130, [(128, 128), (2, 130)]),
    (300, [(128, 128), (128, 256), (44, 300)]),
    (515, [(256, 256), (256, 512), (3, 515)]),
  ],
)
def test_causal_attention_makes_no_scores_of_later_blocks(rng, time, blocks):
  q = rng.normal(size=(1, time, 2, 4)).astype(np.float32)
  k, v = rng.normal(size=(2, 1, time, 1, 4)).astype(np.float32)
  mask = np.tril(rng.random((1, time, time)) < 0.6)
  mask[:, :, 0] = True
  run = functools.partial(
    attention.attend, scale=0.7, softcap=None, causal=True
  )
  scores = 0.7 * np.einsum("tnh,sh->nts", np.float64(q[0]), k[0, :, 0])
  weights = np.exp(scores) * mask
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("nts,sh->tnh", weights, v[0, :, 0])
  np.testing.assert_allclose(
    jax.jit(run)(q, k, v, mask)[0], expected.reshape(time, -1), **TOLERANCE
  )
  made = [
    eqn.outvars[0].aval.shape
    for eqn in jax.make_jaxpr(run)(q, k, v, mask).eqns
    if eqn.primitive.name == "exp"
  ]
  assert [shape[-2:] for shape in made] == blocks


def attention_with_gradient(time, causal):
  """A jitted `attend` on random arrays, and the arrays."""

  @jax.jit
  def run(q, k, v, mask):
    def total(q, k, v):
      out = attention.attend(
        q, k, v, mask, scale=0.7, softcap=None, causal=causal
      )
      return jnp.sum(jnp.sin(out)), out

    grad = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    return grad(q, k, v)

  drawn = np.random.default_rng(0)
  q = drawn.normal(size=(1, time, 2, 4)).astype(np.float32)
  k, v = drawn.normal(size=(2, 1, time, 1, 4)).astype(np.float32)
  segments = np.sort(drawn.integers(0, 5, time))  # of a packed row
  mask = np.tri(time, dtype=bool) & (segments[:, None] == segments)
  return run, (q, k, v, mask[None])


def test_long_rows_in_parts_equal_all_scores_at_once():
  """Blocks of 640 queries, in parts of 256 and a rest."""
  (run, arrays), (whole, _) = (
    attention_with_gradient(2500, causal) for causal in (True, False)
  )
  assert "scan" in str(jax.make_jaxpr(run)(*arrays))
  found, expected = run(*arrays), whole(*arrays)
  scale = max(np.max(np.abs(g)) for g in jax.tree.leaves(expected[1]))
  np.testing.assert_allclose(found[0][1], expected[0][1], rtol=1e-5, atol=1e-5)
  for mine, theirs in zip(found[1], expected[1], strict=True):
    np.testing.assert_allclose(mine / scale, theirs / scale, atol=1e-5)


def test_memory_of_attention_grows_as_the_row_does():
  """Less the mask, which is given; scores of all pairs would be four times."""
  sizes = []
  for time in (4096, 8192):
    run, arrays = attention_with_gradient(time, causal=True)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    sizes.append(run.lower(*shapes).compile().memory_analysis())
  small, large = (found.temp_size_in_bytes for found in sizes)
  assert large < 2.5 * small, (small, large)


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_that_sees_nothing_is_finite_and_keeps_gradients_finite(
  rng, causal
):
  q, k, v = rng.normal(size=(3, 1, 2, 1, 4)).astype(np.float32)
  mask = np.array([[[True, False], [False, False]]])

  def total(q, k, v):
    out = attention.attend(
      q, k, v, mask, scale=1.0, softcap=None, causal=causal
    )
    return jnp.sum(out**2)

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
  value, grads = run(q, k, v)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("name", ["llama_tiny", "gemma_tiny"])
def test_gated_mlp(rng, name):
  cfg = toys.config(name)
  leaves = toys.random_params(cfg)["layers"]["mlp"]
  leaves = reference.layer_of(leaves, 1)
  x = 2.0 * rng.normal(size=(1, 3, cfg.width)).astype(np.float32)
  module = layers.GatedMLP(cfg, toys.NO_LORA)
  run = jax.jit(functools.partial(module.apply, deterministic=True))
  found = run({"params": leaves}, x)
  expected = reference.mlp(
    cfg, reference.float64(leaves), np.float64(x[0]), lora_scale=None
  )
  np.testing.assert_allclose(found[0], expected, **TOLERANCE)


def test_gated_mlp_keeps_two_arrays_of_its_width(rng):
  cfg = toys.config("llama_tiny")
  leaves = reference.layer_of(toys.random_params(cfg)["layers"]["mlp"], 1)
  x = rng.normal(size=(1, 3, cfg.width)).astype(np.float32)
  module = layers.GatedMLP(cfg, toys.NO_LORA)

  def run(x):
    return module.apply({"params": leaves}, x, deterministic=True)

  kept = jax.eval_shape(lambda x: jax.vjp(run, x)[1], x)
  shapes = [leaf.shape for leaf in jax.tree.leaves(kept)]
  assert shapes.count((1, 3, cfg.mlp_width)) == 2


def test_scalar_head(rng):
  hidden = rng.normal(size=(2, 3, 8)).astype(np.float32)
  start = heads.ScalarHead().init(jax.random.key(0), hidden)["params"]
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(start))
  leaves = {
    "kernel": rng.normal(size=8).astype(np.float32),
    "bias": np.float32(0.5),
  }
  # Scores are float32 whatever the backbone computes in.
  half = jnp.asarray(hidden, jnp.bfloat16)
  found = heads.ScalarHead().apply({"params": leaves}, half)
  assert found.dtype == jnp.float32
  expected = np.float64(half) @ leaves["kernel"] + 0.5
  np.testing.assert_allclose(found, expected, **TOLERANCE)
