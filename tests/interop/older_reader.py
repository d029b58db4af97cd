"""What readers make of a config.json that know its older fields alone.

Written from the documented fields and defaults of the config classes of
transformers 4 (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config,
GemmaConfig, Gemma2Config, Gemma3TextConfig), which vLLM, TGI and the converter
of llama.cpp read in the same way. A missing field takes its default, silently.
"""

_TIED = ("gemma", "gemma2", "gemma3_text")
_SCALING = ("factor", "low_freq_factor", "high_freq_factor")
_OTHER_HEAD = {
  "gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128
}  # fmt: skip
_ROUNDED = ("head_dim", "query_pre_attn_scalar")


def read(fields: dict) -> dict:
  """The model that the older fields describe."""
  kind = fields["model_type"]
  layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
  theta = 1_000_000.0 if kind == "gemma3_text" else 10_000.0
  scaling = fields.get("rope_scaling") or {}
  rope_type = scaling.get("rope_type", scaling.get("type", "default"))
  head_dim = fields.get("head_dim") or _OTHER_HEAD.get(
    kind, fields["hidden_size"] // heads
  )
  found = {
    "vocab_size": fields["vocab_size"],
    "layers": layers,
    "heads": (heads, fields.get("num_key_value_heads") or heads, head_dim),
    "widths": (fields["hidden_size"], fields["intermediate_size"]),
    "max_len": fields.get("max_position_embeddings"),
    "eps": fields.get("rms_norm_eps", 1e-6),
    "tied": fields.get("tie_word_embeddings", kind in _TIED),
    "theta": fields.get("rope_theta", theta),
    "rope_type": rope_type,
    "scaling": tuple(scaling.get(name) for name in _SCALING),
    "windows": [_window(kind, fields, i) for i in range(layers)],
    "dtype": fields.get("torch_dtype", "float32"),
    "biases": (
      kind == "qwen2" or fields.get("attention_bias", False),
      fields.get("mlp_bias", False),
    ),
  }
  if kind in ("gemma2", "gemma3_text"):
    found["scalar"] = fields.get("query_pre_attn_scalar", 256)
    found["softcaps"] = (
      fields.get("attn_logit_softcapping", 50.0 if kind == "gemma2" else None),
      fields.get("final_logit_softcapping", 30.0 if kind == "gemma2" else None),
    )
  if kind == "gemma3_text":
    found["local_theta"] = fields.get("rope_local_base_freq", 10_000.0)
  return found


def _window(kind: str, fields: dict, layer: int) -> int | None:
  """The window of a layer; those classes had no list of layer types."""
  window = fields.get("sliding_window", 4096)
  if kind in ("llama", "gemma"):
    return None
  if kind == "mistral":
    return window
  if kind in ("qwen2", "qwen3"):
    used = fields.get("use_sliding_window", False)
    return (
      window if used and layer >= fields.get("max_window_layers", 28) else None
    )
  period = 2 if kind == "gemma2" else fields.get("sliding_window_pattern", 6)
  return window if (layer + 1) % period else None
