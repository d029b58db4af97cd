"""Parts of a decoder block: RMSNorm, rotary positions, attention, gated MLP."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from perl_jax import sharding
from perl_jax.models import attention as attention_lib
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec, Projection


class RMSNorm(nn.Module):
  """Root-mean-square norm, in float32; the result has the dtype of x.

  y = x / sqrt(mean(x^2) + eps) * w, or * (1 + w) with `plus_one` (Gemma)

  Reference: Zhang & Sennrich 2019, arXiv:1910.07467.
  """

  eps: float
  plus_one: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis of `[..., D]`."""
    init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32)
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * (scale + 1.0 if self.plus_one else scale)).astype(x.dtype)


class Rotary(NamedTuple):
  """Cosines and sines of the rotary angles, `[B, T, 1, H / 2]`, float32."""

  cos: jax.Array
  sin: jax.Array


def rotary_frequencies(
  config: ModelConfig, *, local: bool = False
) -> jax.Array:
  """Rotary frequency of each pair of dimensions, radians per position.

  f_i = theta^(-2 i / H), and with s = rope_factor

  "linear": f_i / s
  "llama3": f_i times (1 - g) / s + g, where g goes from 0 to 1 as the turns
      that the pair makes within the original context, n = f_i N / (2 pi), go
      from rope_low_freq_factor to rope_high_freq_factor
  "yarn": the same with a g that goes from 1 to 0 as i goes from the pair that
      makes rope_high_freq_factor turns to that of rope_low_freq_factor, the one
      rounded down and the other up if rope_truncate

  Args:
    config: Shapes and switches of the model.
    local: Whether to use the base `rope_local_theta` of windowed layers, whose
      frequencies are not scaled.

  Returns:
    `[H / 2]`, float32.

  Reference: Su et al. 2021, arXiv:2104.09864; Chen et al. 2023,
  arXiv:2306.15595; Llama team 2024, arXiv:2407.21783; Peng et al. 2023,
  arXiv:2309.00071.
  """
  exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
  exponents = exponents / config.head_dim
  if local:
    return config.rope_local_theta**-exponents
  frequencies = config.rope_theta**-exponents
  if config.rope_type == "linear":
    return frequencies / config.rope_factor
  if config.rope_type == "llama3":
    turns = frequencies * config.rope_original_max_len / (2 * jnp.pi)
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * ((1.0 - kept) / config.rope_factor + kept)
  if config.rope_type == "yarn":
    first, last = _yarn_range(config)
    pairs = jnp.arange(config.head_dim // 2, dtype=jnp.float32)
    kept = 1.0 - jnp.clip((pairs - first) / (last - first), 0.0, 1.0)
    return frequencies * ((1.0 - kept) / config.rope_factor + kept)
  return frequencies


def _yarn_range(config: ModelConfig) -> tuple[float, float]:
  """Pairs of dimensions between which YaRN scales a frequency in part.

  The pair i with n turns within the original context N, of f_i N = 2 pi n, is
  i = H ln(N / (2 pi n)) / (2 ln theta).
  """

  def pair(turns: float) -> float:
    length = config.rope_original_max_len / (2 * math.pi * turns)
    return (
      config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))
    )

  first = pair(config.rope_high_freq_factor)
  last = pair(config.rope_low_freq_factor)
  if config.rope_truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, config.head_dim - 1)
  return first, last if last != first else last + 0.001


def rotary_angles(
  positions: jax.Array, frequencies: jax.Array, factor: float = 1.0
) -> Rotary:
  """Cosines and sines of position times frequency.

  Args:
    positions: Position of each token in its sequence, `[B, T]`, int.
    frequencies: From `rotary_frequencies`, `[H / 2]`.
    factor: Multiplies both, and so queries and keys.
  """
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return (
    Rotary(cos, sin) if factor == 1.0 else Rotary(cos * factor, sin * factor)
  )


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
  """Rotates pairs (x_i, x_{i + H/2}) of `[B, T, heads, H]` by their angle."""
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = rotary
  return jnp.concatenate(
    [x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1
  ).astype(x.dtype)


class KVSlots(NamedTuple):
  """Key/value cache of a stack of layers, and where this pass writes.

  Attributes:
    keys: `[L, B, K, S, H]`.
    values: `[L, B, K, S, H]`.
    start: First of the S columns that this pass writes, int32 scalar.
  """

  keys: jax.Array
  values: jax.Array
  start: jax.Array

  def write(
    self, layer: jax.Array, keys: jax.Array, values: jax.Array
  ) -> "KVSlots":
    """Returns the cache with one layer's keys and values of this pass.

    Args:
      layer: Index of the layer in the stack, int32 scalar.
      keys: `[B, T, K, H]`, written to the T columns from `start`.
      values: `[B, T, K, H]`, written to the same columns.
    """

    def put(cache, new):
      new = new.swapaxes(1, 2)[None].astype(cache.dtype)
      at = (layer, 0, 0, self.start, 0)
      return jax.lax.dynamic_update_slice(cache, new, at)

    return self._replace(
      keys=put(self.keys, keys), values=put(self.values, values)
    )

  def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and the values of one layer, `[B, K, S, H]` each."""
    return (
      jax.lax.dynamic_index_in_dim(self.keys, layer, keepdims=False),
      jax.lax.dynamic_index_in_dim(self.values, layer, keepdims=False),
    )


class Attention(nn.Module):
  """Self-attention with rotary positions and an optional KV cache.

  Attributes:
    config: Shapes and switches of the model.
    lora: Adapter shape.
    kernel: From `attention.choose`. "splash" reads `segments` and `windowed`,
      the others `attention_mask`.
    layout: Sharding of the parameters. Whatever it is, each head attends on the
      device that holds its part of the cache.
  """

  config: ModelConfig
  lora: LoraSpec
  kernel: str
  layout: sharding.Layout

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    rotary: Rotary,
    attention_mask: jax.Array | None,
    segments: jax.Array,
    windowed: jax.Array,
    slots: KVSlots | None,
    layer: jax.Array,
    deterministic: bool,
  ) -> tuple[jax.Array, KVSlots | None]:
    """Maps `[B, T, D]` to `[B, T, D]`; writes keys and values to `slots`."""
    cfg, layout = self.config, self.layout
    batch, length, _ = x.shape

    def project(name, features, bias):
      return Projection(
        features,
        name_for_lora=f"attention/{name}",
        lora=self.lora,
        use_bias=bias,
        dtype=cfg.dtype,
        kernel_init=nn.initializers.lecun_normal(),
        layout=self.layout,
        name=name,
      )

    def heads(name, count):
      y = project(name, count * cfg.head_dim, cfg.qkv_bias)(
        x, deterministic=deterministic
      )
      # The kernel stays where it is; what it gave moves to the cache's rows.
      y = sharding.constrain(y, layout.rows, None, layout.widths)
      y = at_cache(y, count)
      return y.reshape(batch, length, count, cfg.head_dim)

    def at_cache(y, count):
      # Flat, since heads may be fewer than the devices that share them.
      (axes,) = sharding.fitting(P(sharding.HEAD_AXIS), (count,))
      return sharding.constrain(y, sharding.BATCH_AXES, None, axes)

    q = heads("q", cfg.num_heads)
    k = heads("k", cfg.num_kv_heads)
    v = heads("v", cfg.num_kv_heads)
    if cfg.qk_norm:
      q = RMSNorm(cfg.norm_eps, cfg.norm_plus_one, name="q_norm")(q)
      k = RMSNorm(cfg.norm_eps, cfg.norm_plus_one, name="k_norm")(k)
    q, k = rotate(q, rotary), rotate(k, rotary)
    if slots is not None:
      slots = slots.write(layer, k, v)
      if self.kernel != "splash":  # it is chosen where there are no others
        k, v = slots.read(layer)
    out = self._attend(
      q,
      k,
      v,
      attention_mask=attention_mask,
      segments=segments,
      windowed=windowed,
      cached=slots is not None,
    )
    out = at_cache(out, cfg.num_heads)
    out = sharding.constrain(out, layout.rows, None, layout.widths)
    out = project("o", cfg.width, cfg.out_bias)(
      out, deterministic=deterministic
    )
    return out, slots

  def _attend(
    self, q, k, v, *, attention_mask, segments, windowed, cached
  ) -> jax.Array:
    """Attention of queries `[B, T, N, H]` to keys, by the module's kernel.

    Keys and values are `[B, T, K, H]`, and `[B, K, S, H]` if they are cached.
    """
    cfg = self.config
    scale = cfg.head_dim**-0.5 if cfg.query_scale is None else cfg.query_scale
    if self.kernel == "splash":
      alike = len(set(cfg.layer_is_windowed)) == 1
      return attention_lib.attend_splash(
        q,
        k,
        v,
        segments,
        scale=scale,
        softcap=cfg.attn_softcap,
        window=cfg.sliding_window if any(cfg.layer_is_windowed) else None,
        windowed=None if alike else windowed,
      )
    if self.kernel == "cudnn":
      if cached:
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
      return attention_lib.attend_cudnn(q, k, v, attention_mask, scale=scale)
    options = dict(scale=scale, softcap=cfg.attn_softcap)
    if cached:
      return attention_lib.attend_cached(q, k, v, attention_mask, **options)
    return attention_lib.attend(q, k, v, attention_mask, causal=True, **options)


class GatedMLP(nn.Module):
  """Gated feed-forward layer: down(activation(gate(x)) * up(x)).

  Reference: Shazeer 2020, arXiv:2002.05202.
  """

  config: ModelConfig
  lora: LoraSpec
  layout: sharding.Layout = sharding.TRAIN

  @nn.compact
  def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`."""
    cfg = self.config

    def project(name, features, y):
      return Projection(
        features,
        name_for_lora=f"mlp/{name}",
        lora=self.lora,
        use_bias=cfg.mlp_bias,
        dtype=cfg.dtype,
        kernel_init=nn.initializers.lecun_normal(),
        layout=self.layout,
        name=name,
      )(y, deterministic=deterministic)

    def gated(gate, up):
      if cfg.activation == "silu":
        return jax.nn.silu(gate) * up
      return jax.nn.gelu(gate, approximate=True) * up

    gate = project("gate", cfg.mlp_width, x)
    up = project("up", cfg.mlp_width, x)
    # Kept for the backward pass are its two arguments and nothing between.
    hidden = jax.checkpoint(gated, prevent_cse=False)(gate, up)
    return project("down", cfg.width, hidden)
