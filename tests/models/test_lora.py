"""Adapters: where they are, how they start, what they add."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models import lora
from perl_jax.models.lora import LoraSpec
from tests import toys

# One matrix product of width 32 in float32.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def projection(spec, *, name="attention/q", features=6, bias=False):
  return lora.Projection(
    features,
    name_for_lora=name,
    lora=spec,
    use_bias=bias,
    dtype="float32",
    kernel_init=nn.initializers.lecun_normal(),
  )


def drawn(rng, width=32, features=6, rank=3):
  leaves = dict(
    kernel=rng.normal(size=(width, features)),
    lora_a=rng.normal(size=(width, rank)),
    lora_b=rng.normal(size=(rank, features)),
    bias=rng.normal(size=features),
  )
  return {k: v.astype(np.float32) for k, v in leaves.items()}


@pytest.mark.parametrize(
  ("spec", "scale"),
  [
    (LoraSpec(rank=3, alpha=12.0), 4.0),
    (LoraSpec(rank=4, alpha=16.0, rslora=True), 8.0),
    # With dropout configured, deterministic still means without it.
    (LoraSpec(rank=2, alpha=1.0, dropout=0.5), 0.5),
  ],
)
def test_projection_is_base_plus_scaled_product(rng, spec, scale):
  leaves = drawn(rng, rank=spec.rank)
  x = rng.normal(size=(2, 5, 32)).astype(np.float32)
  run = functools.partial(projection(spec, bias=True).apply, deterministic=True)
  found = jax.jit(run)({"params": leaves}, x)
  w, a, b = (np.float64(leaves[k]) for k in ("kernel", "lora_a", "lora_b"))
  expected = x @ w + leaves["bias"] + scale * (x @ a @ b)
  np.testing.assert_allclose(found, expected, **TOLERANCE)
  assert spec.scale == scale


def test_rank_0_has_no_leaves_and_computes_the_base(rng):
  x = rng.normal(size=(5, 32)).astype(np.float32)
  module = projection(LoraSpec(rank=0))
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), x, deterministic=True)
  )
  assert set(shapes["params"]) == {"kernel"}
  kernel = drawn(rng)["kernel"]
  found = module.apply({"params": {"kernel": kernel}}, x, deterministic=True)
  np.testing.assert_allclose(found, x @ np.float64(kernel), **TOLERANCE)


def test_initial_b_is_zero_and_a_is_kaiming_uniform():
  """U(-1/sqrt(in), 1/sqrt(in)), which has variance 1 / (3 in)."""
  width, rank = 400, 64
  module = projection(LoraSpec(rank=rank))
  init = jax.jit(functools.partial(module.init, deterministic=True))
  leaves = jax.device_get(init(jax.random.key(3), jnp.ones((1, width))))
  leaves = leaves["params"]
  assert not np.any(leaves["lora_b"])
  a = np.asarray(leaves["lora_a"], np.float64)
  bound = width**-0.5
  assert 0.999 * bound < np.abs(a).max() <= bound
  # 25,600 draws: the mean within 4 deviations, the variance within 4 %.
  assert abs(a.mean()) < 4 * np.sqrt(1 / (3 * width) / a.size)
  np.testing.assert_allclose(a.var(), 1 / (3 * width), rtol=0.04)


@functools.cache
def initial():
  cfg, spec = toys.config(), LoraSpec(rank=8, targets="all")
  init = jax.jit(roles.init_adapter, static_argnums=(1, 2))
  return cfg, spec, jax.device_get(init(jax.random.key(0), cfg, spec))


def test_initial_adapter_of_the_whole_model():
  """The scan over layers changes neither the bound nor that layers differ."""
  _, _, adapter = initial()
  leaves = params_lib.flatten(adapter)
  assert len(leaves) == 14
  for path, leaf in leaves.items():
    assert leaf.dtype == np.float32
    if path.endswith("lora_b"):
      assert not np.any(leaf), path
      continue
    bound = leaf.shape[1] ** -0.5
    assert 0.95 * bound < np.abs(leaf).max() <= bound, path
    assert not np.array_equal(leaf[0], leaf[1]), path


def test_new_adapter_changes_nothing():
  """Bit for bit: rank 8 with B = 0 against the same base at rank 0."""
  cfg, spec, adapter = initial()
  backbone = roles.Backbone(cfg, spec)
  base = toys.random_params(cfg)
  run = jax.jit(functools.partial(roles.hidden_states, backbone))
  tokens = toys.random_tokens(0, 2, 6)
  sequence = roles.right_padded(tokens, jnp.array([6, 4]))
  plain = run(base, sequence)
  adapted = run(params_lib.combine(adapter, base), sequence)
  np.testing.assert_array_equal(adapted, plain)
  moved = params_lib.combine(toys.perturbed(adapter), base)
  assert np.abs(run(moved, sequence) - plain).max() > 0.01


@pytest.mark.parametrize("head", [False, True])
def test_frozen_side_is_the_base_tree(head):
  """Same paths and shapes as a model that never heard of adapters."""
  cfg, spec, _ = initial()
  _, frozen = params_lib.partition(toys.shapes(cfg, spec, head=head), "lora")
  params_lib.require_same_leaves(toys.shapes(cfg), frozen, "frozen")
  base = roles.Backbone(cfg, spec).module(frozen)
  assert base.lora.rank == 0


@pytest.mark.parametrize(
  ("targets", "expected"),
  [
    ("attention", set(lora.ATTENTION)),
    ("all", set(lora.ATTENTION) | set(lora.MLP)),
    ("attention/[qv]", {"attention/q", "attention/v"}),
    ("mlp/.*", {"mlp/gate", "mlp/up", "mlp/down"}),
    (".*/(o|down)", {"attention/o", "mlp/down"}),
  ],
)
def test_targets(targets, expected):
  tree = toys.shapes(toys.config(), LoraSpec(rank=2, targets=targets))
  found = {
    path.removeprefix("layers/").removesuffix("/lora_a")
    for path in params_lib.flatten(tree)
    if path.endswith("/lora_a")
  }
  assert found == expected


def test_attention_is_the_default():
  assert LoraSpec(rank=1).targets == "attention"


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    # A pattern is matched in full: a bare "q" finds nothing.
    (dict(rank=1, targets="q"), r"lora\.targets='q' matches no projection"),
    (dict(rank=1, targets="mlp/("), r"lora\.targets='mlp/\(' is not a regular"),
    (dict(rank=-1), r"lora\.rank=-1"),
    (dict(rank=1, dropout=1.0), r"lora\.dropout=1\.0"),
  ],
)
def test_specs_that_make_no_adapter_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    LoraSpec(**fields)


def test_spec_round_trip():
  spec = LoraSpec(rank=3, alpha=2.0, dropout=0.1, rslora=True, targets="all")
  assert LoraSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
  ("changes", "fits"),
  [
    ({}, True),
    ({"dropout": 0.5}, True),
    ({"rank": 4}, False),
    ({"alpha": 1.0}, False),
    ({"rslora": True}, False),
    ({"targets": "all"}, False),
  ],
)
def test_an_adapter_goes_on_as_one_of_its_shape_and_scale(changes, fits):
  spec = LoraSpec(rank=2, dropout=0.1)
  assert spec.fits(dataclasses.replace(spec, **changes)) == fits


def test_dropout_is_unbiased_and_only_in_the_adapter(rng):
  """The mean over many draws of the mask is the output without dropout."""
  rate, rows = 0.4, 20_000
  spec = LoraSpec(rank=3, alpha=3.0, dropout=rate)
  leaves, row = drawn(rng), rng.normal(size=32).astype(np.float32)
  x = np.broadcast_to(row, (rows, 32))
  del leaves["bias"]
  plain = row @ leaves["kernel"] + row @ leaves["lora_a"] @ leaves["lora_b"]

  @jax.jit
  def run(leaves, key):
    return projection(spec).apply(
      {"params": leaves}, x, deterministic=False, rngs={"dropout": key}
    )

  found = np.asarray(run(leaves, jax.random.key(0)), np.float64)
  spread = found.std(axis=0)
  # var = rate / (1 - rate) * sum_i (x_i (A B)_i)^2
  product = np.float64(leaves["lora_a"]) @ leaves["lora_b"]
  variance = rate / (1 - rate) * ((row[:, None] * product) ** 2).sum(0)
  np.testing.assert_allclose(spread, np.sqrt(variance), rtol=0.03)
  error = np.abs(found.mean(axis=0) - plain) / (spread / rows**0.5)
  assert error.max() < 4.5
  without = np.asarray(
    run(leaves | {"lora_b": 0 * leaves["lora_b"]}, jax.random.key(0))
  )
  np.testing.assert_array_equal(without, np.broadcast_to(without[0], (rows, 6)))


def test_dropout_needs_a_key():
  """Without one the model is deterministic; the key decides what is dropped."""
  cfg = toys.config()
  backbone = roles.Backbone(cfg, LoraSpec(rank=2, dropout=0.5))
  params = toys.random_params(cfg, backbone.lora)
  sequence = roles.right_padded(toys.random_tokens(0, 2, 6), jnp.array([6, 6]))
  plain = jax.jit(functools.partial(roles.hidden_states, backbone))
  dropped = jax.jit(
    lambda params, sequence, key: roles.hidden_states(
      backbone, params, sequence, key=key
    )
  )
  np.testing.assert_array_equal(
    plain(params, sequence), plain(params, sequence)
  )
  one, again, other = (
    dropped(params, sequence, jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.01
  assert np.abs(one - plain(params, sequence)).max() > 0.01
