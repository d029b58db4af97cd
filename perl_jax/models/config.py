"""Static description of a backbone, in what open decoder-only families differ.

One frozen dataclass covers Llama, Mistral, Qwen and Gemma. It is hashable, so
that it can be a static argument of a jitted function, and it round-trips
through JSON, so that a workdir records its model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from perl_jax import names

ACTIVATIONS = ("silu", "gelu_tanh")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
REMAT_POLICIES = ("none", "dots", "full")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
SIZES = (
  "vocab_size",
  "num_layers",
  "width",
  "mlp_width",
  "num_heads",
  "num_kv_heads",
  "head_dim",
  "max_len",
  "sliding_window",
  "scan_unroll",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shapes and switches of a decoder-only transformer.

  Attributes:
    vocab_size: `V`, number of tokens in the vocabulary.
    num_layers: `L`, number of layers.
    width: `D`, size of a hidden state.
    mlp_width: `F`, hidden size of the MLP.
    num_heads: `N`, number of query heads.
    num_kv_heads: `K`, number of key/value heads; `N` is a multiple of it.
    head_dim: `H`, size of a head.
    max_len: Longest sequence (prompt and response), in tokens.
    activation: Gate of the MLP, "silu" (Llama, Qwen) or "gelu_tanh" (Gemma).
    norm_eps: Added to the mean square in RMSNorm.
    norm_plus_one: RMSNorm scales by `1 + w` (Gemma) instead of `w`.
    post_norms: RMSNorm after attention and MLP as well (Gemma 2 and 3).
    qk_norm: RMSNorm over `H` of queries and keys (Qwen3, Gemma 3).
    qkv_bias: Bias on q, k, v (Qwen2).
    out_bias: Bias on o as well (Llama with `attention_bias`).
    mlp_bias: Bias on the MLP projections.
    tied_head: Logits use the transposed embedding.
    embed_scale: Multiplies embeddings by sqrt(D) (Gemma).
    query_scale: Factor on queries; None is `H ** -0.5`.
    attn_softcap: Bound c of `c * tanh(scores / c)`; None is off (Gemma 2).
    final_softcap: The same bound on the logits.
    rope_theta: Base of the rotary frequencies.
    rope_local_theta: Base in windowed layers (Gemma 3); None is `rope_theta`.
    rope_type: How frequencies are scaled for longer contexts, see
      `layers.rotary_frequencies`: "default" (not), "linear" (Gemma 3),
      "llama3" (Llama 3.1 and 3.2) or "yarn" (long Qwens). Windowed layers with
      a base of their own are not scaled.
    rope_factor: Divisor of the frequencies that are scaled.
    rope_low_freq_factor: With "llama3" and "yarn", a frequency of fewer turns
      than this within `rope_original_max_len` is scaled in full.
    rope_high_freq_factor: With "llama3" and "yarn", a frequency of more turns
      than this is not scaled.
    rope_original_max_len: With "llama3" and "yarn", context length of the
      pretraining.
    rope_truncate: With "yarn", whether the pairs of dimensions between which
      frequencies are scaled in part are whole numbers.
    rope_attention_factor: With "yarn", factor on queries and on keys.
    sliding_window: Number of latest tokens that a token sees in a windowed
      layer, itself included; None windows no layer.
    global_every: With a window, every n-th layer (counted from 1) is global;
      0 windows every layer (Mistral), 2 is Gemma 2, 6 is Gemma 3.
    scan_unroll: Layers per iteration of the scan. 1 compiles fastest;
      `num_layers` runs up to a third faster on a CPU, where XLA does not spread
      the elementwise work of a loop over cores.
    remat: What the backward pass recomputes: "none" keeps all activations,
      "dots" keeps matrix products, "full" keeps layer inputs only.
    dtype: Compute dtype, "float32" or "bfloat16".
    attention: Attention kernel: "auto" chooses by platform, see
      `attention.choose`; or "xla", "cudnn" or "splash".
  """

  vocab_size: int
  num_layers: int
  width: int
  mlp_width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_len: int = 1024
  activation: str = "silu"
  norm_eps: float = 1e-6
  norm_plus_one: bool = False
  post_norms: bool = False
  qk_norm: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  tied_head: bool = True
  embed_scale: bool = False
  query_scale: float | None = None
  attn_softcap: float | None = None
  final_softcap: float | None = None
  rope_theta: float = 10_000.0
  rope_local_theta: float | None = None
  rope_type: str = "default"
  rope_factor: float = 1.0
  rope_low_freq_factor: float = 1.0
  rope_high_freq_factor: float = 4.0
  rope_original_max_len: int = 8192
  rope_truncate: bool = True
  rope_attention_factor: float = 1.0
  sliding_window: int | None = None
  global_every: int = 0
  scan_unroll: int = 1
  remat: str = "none"
  dtype: str = "float32"
  attention: str = "auto"

  def __post_init__(self):
    for field in SIZES:
      value = getattr(self, field)
      if value is not None and value < 1:
        raise ValueError(f"model.{field}={value} must be at least 1.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even (RoPE).")
    for field, allowed in (
      ("activation", ACTIVATIONS),
      ("remat", REMAT_POLICIES),
      ("rope_type", ROPE_TYPES),
      ("dtype", ("float32", "bfloat16")),
      ("attention", ATTENTIONS),
    ):
      if getattr(self, field) not in allowed:
        raise ValueError(
          f"model.{field}={getattr(self, field)!r}: choose one of {allowed}."
        )
    if self.attention == "cudnn" and self.cudnn_refuses:
      raise ValueError(
        f"model.attention='cudnn' does not support {self.cudnn_refuses}; use"
        " 'auto' or 'xla'."
      )

  @property
  def cudnn_refuses(self) -> str | None:
    """The field, with its value, that cuDNN's attention does not support."""
    if self.dtype != "bfloat16":
      return f"dtype={self.dtype!r}"
    if self.attn_softcap is not None:
      return f"attn_softcap={self.attn_softcap}"
    return f"head_dim={self.head_dim}" if self.head_dim % 8 else None

  @property
  def layer_is_windowed(self) -> tuple[bool, ...]:
    """Whether each layer attends through the sliding window, `L` values."""
    if self.sliding_window is None:
      return (False,) * self.num_layers
    if not self.global_every:
      return (True,) * self.num_layers
    return tuple(
      (i + 1) % self.global_every != 0 for i in range(self.num_layers)
    )

  def to_dict(self) -> dict[str, Any]:
    """JSON-able fields."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "ModelConfig":
    """Inverse of `to_dict`.

    Raises:
      ValueError: A field is unknown; the nearest name is given.
    """
    known = sorted(f.name for f in dataclasses.fields(cls))
    extra = sorted(set(fields) - set(known))
    if extra:
      hint = names.did_you_mean(extra[0], known)
      raise ValueError(f"Unknown model fields {extra}.{hint} Known: {known}.")
    return cls(**fields)
