"""Named backbones: small ones to train from scratch, one per open family.

`vocab_size` comes from the tokenizer and `max_len` from the data, so that a
preset sets only the other fields; that of a published model also sets
`vocab_size`. The `*_tiny` presets have the switches of a family at toy size,
for tests.
"""

from typing import Any

from perl_jax import names
from perl_jax.models.config import ModelConfig

_LLAMA = dict(activation="silu", tied_head=True, norm_eps=1e-5)
_GEMMA = dict(activation="gelu_tanh", norm_plus_one=True, embed_scale=True)
_GEMMA2 = dict(
  _GEMMA,
  post_norms=True,
  attn_softcap=50.0,
  final_softcap=30.0,
  global_every=2,
)
_TINY = dict(
  num_layers=2,
  width=32,
  mlp_width=64,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
)

PRESETS: dict[str, dict[str, Any]] = {
  # For tests, and for seeing a stage run at all.
  "tiny": dict(_TINY, **_LLAMA),
  # The embedded data set: minutes on two CPU cores.
  "small": dict(
    _LLAMA,
    num_layers=4,
    width=128,
    mlp_width=384,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
  ),
  # Taskmaster: a quarter of an hour on two CPU cores.
  "medium": dict(
    _LLAMA,
    num_layers=4,
    width=192,
    mlp_width=576,
    num_heads=4,
    num_kv_heads=2,
    head_dim=48,
  ),
  # One accelerator.
  "base": dict(
    _LLAMA,
    num_layers=12,
    width=768,
    mlp_width=2048,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
  ),
  # As published, to plan with: google/gemma-2b, google/gemma-2-27b,
  # meta-llama/Meta-Llama-3-8B and -70B.
  "gemma_2b": dict(
    _GEMMA,
    num_layers=18,
    width=2048,
    mlp_width=16_384,
    num_heads=8,
    num_kv_heads=1,
    head_dim=256,
    vocab_size=256_000,
  ),
  "gemma2_27b": dict(
    _GEMMA2,
    num_layers=46,
    width=4608,
    mlp_width=36_864,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    query_scale=(4608 / 32) ** -0.5,
    sliding_window=4096,
    vocab_size=256_000,
  ),
  "llama_8b": dict(
    _LLAMA,
    num_layers=32,
    width=4096,
    mlp_width=14_336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    vocab_size=128_256,
  )
  | dict(tied_head=False),
  "llama_70b": dict(
    _LLAMA,
    num_layers=80,
    width=8192,
    mlp_width=28_672,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    vocab_size=128_256,
  )
  | dict(tied_head=False),
  "llama_tiny": dict(_TINY, **_LLAMA) | dict(tied_head=False),
  "mistral_tiny": dict(_TINY, **_LLAMA)
  | dict(tied_head=False, sliding_window=5),
  "qwen2_tiny": dict(_TINY, **_LLAMA) | dict(qkv_bias=True, norm_eps=1e-6),
  "qwen3_tiny": dict(_TINY, **_LLAMA) | dict(qk_norm=True, norm_eps=1e-6),
  "gemma_tiny": dict(_TINY, **_GEMMA),
  "gemma2_tiny": dict(_TINY, **_GEMMA2)
  | dict(query_scale=0.25, sliding_window=5),
  "gemma3_tiny": dict(
    _TINY,
    activation="gelu_tanh",
    norm_plus_one=True,
    embed_scale=True,
    post_norms=True,
    qk_norm=True,
    sliding_window=5,
    global_every=2,
    rope_theta=1_000_000.0,
    rope_local_theta=10_000.0,
  ),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
  """The `ModelConfig` of a preset, with fields added or replaced.

  Raises:
    ValueError: The preset or a field is unknown; the nearest name is given.
  """
  if name not in PRESETS:
    hint = names.did_you_mean(name, PRESETS)
    raise ValueError(
      f"model.preset={name!r} is unknown.{hint} Known: {sorted(PRESETS)}."
    )
  return ModelConfig.from_dict(PRESETS[name] | overrides)
