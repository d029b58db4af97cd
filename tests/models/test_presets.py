"""Every preset has the leaves and shapes that its switches ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax.models import kv_cache, presets, transformer
from perl_jax.models.lora import LoraSpec
from tests import toys

ALL = sorted(presets.PRESETS)


def expected_shapes(cfg):
  """Leaf by leaf, from the words of `ModelConfig` alone."""
  layers, width, heads = cfg.num_layers, cfg.width, cfg.head_dim
  q, kv = cfg.num_heads * heads, cfg.num_kv_heads * heads
  out = {
    "embedding": (cfg.vocab_size, width),
    "final_norm/scale": (width,),
    "layers/attention_norm/scale": (layers, width),
    "layers/mlp_norm/scale": (layers, width),
    "layers/attention/q/kernel": (layers, width, q),
    "layers/attention/k/kernel": (layers, width, kv),
    "layers/attention/v/kernel": (layers, width, kv),
    "layers/attention/o/kernel": (layers, q, width),
    "layers/mlp/gate/kernel": (layers, width, cfg.mlp_width),
    "layers/mlp/up/kernel": (layers, width, cfg.mlp_width),
    "layers/mlp/down/kernel": (layers, cfg.mlp_width, width),
  }
  if not cfg.tied_head:
    out["lm_head"] = (width, cfg.vocab_size)
  if cfg.post_norms:
    out["layers/post_attention_norm/scale"] = (layers, width)
    out["layers/post_mlp_norm/scale"] = (layers, width)
  if cfg.qk_norm:
    out["layers/attention/q_norm/scale"] = (layers, heads)
    out["layers/attention/k_norm/scale"] = (layers, heads)
  if cfg.qkv_bias:
    out["layers/attention/q/bias"] = (layers, q)
    out["layers/attention/k/bias"] = (layers, kv)
    out["layers/attention/v/bias"] = (layers, kv)
  if cfg.out_bias:
    out["layers/attention/o/bias"] = (layers, width)
  if cfg.mlp_bias:
    for name, size in (("gate", cfg.mlp_width), ("up", cfg.mlp_width)):
      out[f"layers/mlp/{name}/bias"] = (layers, size)
    out["layers/mlp/down/bias"] = (layers, width)
  return out


def shapes_of(tree):
  return {path: leaf.shape for path, leaf in params_lib.flatten(tree).items()}


@pytest.mark.parametrize("name", ALL)
def test_parameter_shapes(name):
  cfg = presets.preset(name, vocab_size=64)
  tree = toys.shapes(cfg)
  assert shapes_of(tree) == expected_shapes(cfg)
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


def test_biases_everywhere():
  cfg = toys.config("tiny", qkv_bias=True, out_bias=True, mlp_bias=True)
  found = shapes_of(toys.shapes(cfg))
  assert found == expected_shapes(cfg)
  assert sum(path.endswith("/bias") for path in found) == 7


@pytest.mark.parametrize("name", ALL)
def test_output_and_cache_shapes(name):
  cfg = presets.preset(name, vocab_size=64)
  batch, time, slots = 2, 3, 5
  one = jnp.ones((batch, time), jnp.int32)

  def run(params, cache):
    module = transformer.Transformer(cfg)
    return module.apply({"params": params}, one, one, one, cache=cache)

  cache = jax.eval_shape(lambda: kv_cache.init_cache(cfg, batch, slots))
  hidden, grown = jax.eval_shape(run, toys.shapes(cfg), cache)
  assert hidden.shape == (batch, time, cfg.width)
  assert hidden.dtype == cfg.dtype
  assert grown == cache
  expected = (cfg.num_layers, batch, cfg.num_kv_heads, slots, cfg.head_dim)
  assert grown.keys.shape == grown.values.shape == expected


@pytest.mark.parametrize("name", ALL)
def test_lora_everywhere_adds_only_its_own_leaves(name):
  cfg = presets.preset(name, vocab_size=64)
  found = shapes_of(toys.shapes(cfg, LoraSpec(rank=3, targets="all")))
  base = expected_shapes(cfg)
  for path in [path for path in base if path.endswith("/kernel")]:
    layers, width, features = base[path]
    stem = path.removesuffix("kernel")
    base[f"{stem}lora_a"] = (layers, width, 3)
    base[f"{stem}lora_b"] = (layers, 3, features)
  assert found == base


def test_families_have_their_switches():
  """What the open families differ in, from their model cards."""
  tiny = {name: toys.config(name) for name in toys.FAMILIES}
  for field, owners in {
    "norm_plus_one": {"gemma_tiny", "gemma2_tiny", "gemma3_tiny"},
    "embed_scale": {"gemma_tiny", "gemma2_tiny", "gemma3_tiny"},
    "post_norms": {"gemma2_tiny", "gemma3_tiny"},
    "qk_norm": {"qwen3_tiny", "gemma3_tiny"},
    "qkv_bias": {"qwen2_tiny"},
    "attn_softcap": {"gemma2_tiny"},
    "final_softcap": {"gemma2_tiny"},
    "sliding_window": {"mistral_tiny", "gemma2_tiny", "gemma3_tiny"},
    "rope_local_theta": {"gemma3_tiny"},
  }.items():
    assert {n for n, c in tiny.items() if getattr(c, field)} == owners, field
  assert tiny["mistral_tiny"].layer_is_windowed == (True, True)
  assert tiny["gemma2_tiny"].layer_is_windowed == (True, False)
  assert tiny["gemma3_tiny"].layer_is_windowed == (True, False)
  gelu = {n for n, c in tiny.items() if c.activation == "gelu_tanh"}
  assert gelu == {"gemma_tiny", "gemma2_tiny", "gemma3_tiny"}


def test_overrides_replace_fields():
  cfg = presets.preset("small", vocab_size=10, num_layers=1, remat="full")
  assert (cfg.num_layers, cfg.remat, cfg.width) == (1, "full", 128)


def test_unknown_preset_names_the_nearest():
  with pytest.raises(
    ValueError, match=r"model\.preset='smal' is unknown.*'small'.*gemma_tiny"
  ):
    presets.preset("smal", vocab_size=10)


def test_unknown_field_names_the_nearest():
  with pytest.raises(ValueError, match=r"'widht'.*Did you mean 'width'"):
    presets.preset("small", vocab_size=10, widht=3)
