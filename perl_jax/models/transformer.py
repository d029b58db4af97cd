"""A decoder-only transformer: embedding, layers under scan, final norm.

Masks come from `positions` and `segments`, never from pad ids: a token sees
the tokens of its own segment, and of the prefix of that segment, at its own
position or before; segment 0 is padding. One rule covers right padding, left
padding, packed rows, and responses that share their prompt.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from perl_jax import sharding
from perl_jax.models import attention, layers
from perl_jax.models.config import ModelConfig
from perl_jax.models.kv_cache import Cache
from perl_jax.models.lora import LoraSpec
from perl_jax.segments import PREFIX


class LayerInputs(NamedTuple):
  """Inputs of a layer that differ from layer to layer, scanned along `L`."""

  index: jax.Array
  windowed: jax.Array


class SharedInputs(NamedTuple):
  """Inputs that all layers share: rotary angles and masks.

  The masks are None for a kernel that makes its own from `segments`.
  """

  segments: jax.Array
  rotary: layers.Rotary
  attention_mask: jax.Array | None
  local_rotary: layers.Rotary | None
  local_mask: jax.Array | None


class Block(nn.Module):
  """One layer: pre-norm attention and MLP, with optional post-norms (Gemma)."""

  config: ModelConfig
  lora: LoraSpec
  kernel: str
  deterministic: bool
  layout: sharding.Layout

  @nn.compact
  def __call__(self, carry, layer: LayerInputs, shared: SharedInputs):
    """One layer; `carry` is (activations `[B, T, D]`, KV slots or None)."""
    cfg = self.config
    x, slots = carry
    rotary, attention_mask = shared.rotary, shared.attention_mask
    if shared.local_mask is not None:
      attention_mask = jnp.where(
        layer.windowed, shared.local_mask, attention_mask
      )
    if shared.local_rotary is not None:
      rotary = jax.tree.map(
        lambda local, full: jnp.where(layer.windowed, local, full),
        shared.local_rotary,
        rotary,
      )

    def norm(name, y):
      return layers.RMSNorm(cfg.norm_eps, cfg.norm_plus_one, name=name)(y)

    out, slots = layers.Attention(
      cfg, self.lora, self.kernel, self.layout, name="attention"
    )(
      norm("attention_norm", x),
      rotary=rotary,
      attention_mask=attention_mask,
      segments=shared.segments,
      windowed=layer.windowed,
      slots=slots,
      layer=layer.index,
      deterministic=self.deterministic,
    )
    x = x + (norm("post_attention_norm", out) if cfg.post_norms else out)
    out = layers.GatedMLP(cfg, self.lora, self.layout, name="mlp")(
      norm("mlp_norm", x), deterministic=self.deterministic
    )
    x = x + (norm("post_mlp_norm", out) if cfg.post_norms else out)
    return (sharding.constrain(x, self.layout.rows), slots), None


def _embed(
  config: ModelConfig,
  embedding: jax.Array,
  tokens: jax.Array,
  layout: sharding.Layout,
) -> jax.Array:
  """Embeddings `[B, T, D]` of tokens `[B, T]`, in the compute dtype."""
  x = embedding[tokens].astype(config.dtype)
  if config.embed_scale:
    x = x * jnp.asarray(config.width**0.5, config.dtype)
  # Looked up where the embedding's columns are, and moved to the rows then:
  # in one go the compiler may make all of it on every device.
  x = sharding.constrain(x, layout.rows[:1], None, layout.model)
  return sharding.constrain(x, layout.rows)


def _key_columns(
  cache: Cache | None, positions: jax.Array, segments: jax.Array
) -> tuple[layers.KVSlots | None, jax.Array, jax.Array]:
  """Returns where keys are written, and positions and segments of all keys.

  Both are `[B, S]`, the tokens of this pass included. Without a cache nothing
  is written, and the keys are those of this pass alone.
  """
  if cache is None:
    return None, positions, segments
  at = (0, cache.length)
  return (
    layers.KVSlots(cache.keys, cache.values, cache.length),
    jax.lax.dynamic_update_slice(cache.positions, positions, at),
    jax.lax.dynamic_update_slice(cache.segments, segments, at),
  )


def _layer_stack(
  config: ModelConfig,
  lora: LoraSpec,
  kernel: str,
  deterministic: bool,
  layout: sharding.Layout,
):
  """The blocks under `nn.scan`, rematerialised as the config says."""
  block = Block
  if config.remat != "none":
    policy = None
    if config.remat == "dots":
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Under scan the loop itself keeps XLA from merging the two passes.
    block = nn.remat(Block, policy=policy, prevent_cse=False)
  stack = nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(0, nn.broadcast),
    length=config.num_layers,
    unroll=config.scan_unroll,
    # The check would trace the blocks once more; nothing here is broadcast out.
    check_constancy_invariants=False,
  )
  return stack(config, lora, kernel, deterministic, layout, name="layers")


def _layer_by_layer(
  modules: tuple, x: jax.Array, slots: layers.KVSlots, shared: SharedInputs
) -> tuple[jax.Array, layers.KVSlots]:
  """The blocks one after another, on layers that are split; no gradient."""
  kept = []
  for i, windowed in enumerate(modules[0].layer_is_windowed):
    here = layers.KVSlots(slots.keys[i], slots.values[i], slots.start)
    block = Block(*modules, name=f"layers_{i}")
    (x, here), _ = block((x, here), LayerInputs(0, windowed), shared)
    kept.append(here)
  return x, slots._replace(
    keys=tuple(here.keys for here in kept),
    values=tuple(here.values for here in kept),
  )


class Transformer(nn.Module):
  """Maps tokens to final hidden states; `roles` computes logits from them.

  Attributes:
    config: Shapes and switches of the model.
    lora: Adapter shape; rank 0 creates the base tree and nothing else.
  """

  config: ModelConfig
  lora: LoraSpec = LoraSpec()

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    *,
    cache: Cache | None = None,
    contiguous: bool = False,
    deterministic: bool = True,
    layout: sharding.Layout = sharding.TRAIN,
  ) -> tuple[jax.Array, Cache | None]:
    """Computes the final hidden states, after the last norm.

    Args:
      tokens: `[B, T]`, int32.
      positions: Position of each token in its sequence, `[B, T]`, int32. They
        never decrease along the columns of a segment, and a prefix comes before
        the segments that see it.
      segments: Sequence that a token belongs to, `[B, T]`, int32; 0 is padding,
        and a multiple of PREFIX the prefix of those that follow it in number.
      cache: If given, the tokens follow those already in it.
      contiguous: Promises that each segment fills columns side by side in the
        order of its positions and that its tokens see no other segment, as in
        padded and packed rows; and of a cache, that it is empty. Kernels that
        know columns and segments only, not masks, may then be used; see
        `attention.choose`.
      deterministic: False turns on LoRA dropout and needs a "dropout" key.
      layout: Sharding of the parameters on a mesh.

    Returns:
      Hidden states `[B, T, D]` in the compute dtype, and the cache with the new
      tokens in it, or None.
    """
    cfg = self.config
    embedding = self.param(
      "embedding",
      nn.initializers.normal(cfg.width**-0.5),
      (cfg.vocab_size, cfg.width),
    )
    x = _embed(cfg, embedding, tokens, layout)
    if not cfg.tied_head:
      # Read by `roles.head_kernel`; created here so that it is in the tree.
      self.param(
        "lm_head",
        nn.initializers.lecun_normal(),
        (cfg.width, cfg.vocab_size),
      )
    slots, key_positions, key_segments = _key_columns(
      cache, positions, segments
    )
    kernel = attention.choose(
      cfg,
      queries=tokens.shape[1],
      keys=key_positions.shape[1],
      contiguous=contiguous,
    )
    shared = self._shared_inputs(
      positions, segments, key_positions, key_segments
    )
    if kernel == "splash":
      shared = shared._replace(attention_mask=None, local_mask=None)
    per_layer = LayerInputs(
      index=jnp.arange(cfg.num_layers),
      windowed=jnp.asarray(cfg.layer_is_windowed),
    )
    modules = cfg, self.lora, kernel, deterministic, layout
    if cache is not None and isinstance(cache.keys, tuple):
      x, slots = _layer_by_layer(modules, x, slots, shared)
    else:
      (x, slots), _ = _layer_stack(*modules)((x, slots), per_layer, shared)
    x = layers.RMSNorm(cfg.norm_eps, cfg.norm_plus_one, name="final_norm")(x)
    if cache is not None:
      cache = Cache(
        keys=slots.keys,
        values=slots.values,
        positions=key_positions,
        segments=key_segments,
        length=cache.length + tokens.shape[1],
      )
    return x, cache

  def _shared_inputs(
    self, positions, segments, key_positions, key_segments
  ) -> SharedInputs:
    cfg = self.config
    distance = positions[:, :, None] - key_positions[:, None, :]
    prefixes = segments - segments % PREFIX
    seen = segments[:, :, None] == key_segments[:, None, :]
    seen |= prefixes[:, :, None] == key_segments[:, None, :]
    mask = seen & (segments != 0)[:, :, None] & (distance >= 0)
    mask &= (key_segments != 0)[:, None, :]
    local_mask = local_rotary = None
    if any(cfg.layer_is_windowed):
      local_mask = mask & (distance < cfg.sliding_window)
      if cfg.rope_local_theta is not None:
        local_rotary = layers.rotary_angles(
          positions, layers.rotary_frequencies(cfg, local=True)
        )
    rotary = layers.rotary_angles(
      positions, layers.rotary_frequencies(cfg), cfg.rope_attention_factor
    )
    return SharedInputs(segments, rotary, mask, local_rotary, local_mask)
