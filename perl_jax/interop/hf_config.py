"""`config.json` of a Hugging Face checkpoint, to a `ModelConfig` and back.

`transformers` parses the file, so that old and new spellings of a field are
accepted (rope_scaling and rope_parameters, for instance) and the defaults are
those of `transformers`.
"""

import os
from pathlib import Path
from typing import Any

from perl_jax.data.text.hugging_face import import_transformers
from perl_jax.models.config import ModelConfig

# model_type -> architecture of the causal language model.
FAMILIES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma": "GemmaForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3_text": "Gemma3ForCausalLM",
}
SEQ_CLS = "ForSequenceClassification"

# Fields of ModelConfig that change how the model is computed, not its result.
_OWN = ("attention", "dtype", "remat", "scan_unroll")
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}


def load_hf_config(directory: str | os.PathLike) -> Any:
  """Reads the config with `transformers`, running no code of the checkpoint.

  Raises:
    FileNotFoundError: There is no config.json.
    ValueError: It cannot be parsed, or its architecture is not supported; the
      message lists those that are.
  """
  path = Path(directory) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist. A Hugging Face checkpoint directory holds"
      " config.json, *.safetensors and the tokenizer's files."
    )
  try:
    config = import_transformers().AutoConfig.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if config.model_type not in FAMILIES:
    raise ValueError(
      f"{path}: model_type={config.model_type!r} is not supported. Supported:"
      f" {', '.join(sorted(FAMILIES))}."
    )
  if getattr(config, "quantization_config", None) is not None:
    raise ValueError(
      f"{path}: the checkpoint is quantised (quantization_config). Give the"
      " checkpoint it was made from."
    )
  return config


def model_config(hf: Any, name: str) -> ModelConfig:
  """The backbone that a `transformers` config describes.

  Args:
    hf: From `load_hf_config`.
    name: Name of the checkpoint, for error messages.

  Raises:
    ValueError: A field has a value that the backbone cannot express.
  """
  family = hf.model_type
  gemma = family in _GEMMAS
  heads = hf.num_attention_heads
  head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // heads
  activation = getattr(hf, "hidden_activation", None) or hf.hidden_act
  if family == "gemma":
    # The first releases say "gelu" and mean its approximation by tanh.
    activation = "gelu_pytorch_tanh"
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f"{name}: hidden_act={activation!r} is not one of {sorted(_ACTIVATIONS)}."
    )
  if getattr(hf, "use_bidirectional_attention", None):
    raise ValueError(f"{name}: use_bidirectional_attention is not supported.")
  extras: dict[str, Any] = {}
  if family in ("llama", "qwen3") or gemma:
    extras["qkv_bias"] = extras["out_bias"] = bool(hf.attention_bias)
  if family == "llama":
    extras["mlp_bias"] = bool(hf.mlp_bias)
  if family == "qwen2":
    extras["qkv_bias"] = True
  if family in ("qwen3", "gemma3_text"):
    extras["qk_norm"] = True
  if family in ("gemma2", "gemma3_text"):
    extras |= {
      "post_norms": True,
      "query_scale": hf.query_pre_attn_scalar**-0.5,
      "attn_softcap": hf.attn_logit_softcapping,
      "final_softcap": hf.final_logit_softcapping,
    }
  return ModelConfig(
    vocab_size=hf.vocab_size,
    num_layers=hf.num_hidden_layers,
    width=hf.hidden_size,
    mlp_width=hf.intermediate_size,
    num_heads=heads,
    num_kv_heads=hf.num_key_value_heads,
    head_dim=head_dim,
    max_len=hf.max_position_embeddings,
    activation=_ACTIVATIONS[activation],
    norm_eps=hf.rms_norm_eps,
    norm_plus_one=gemma,
    embed_scale=gemma,
    tied_head=bool(hf.tie_word_embeddings),
    **extras,
    **_windows(hf, name),
    **_rotary(hf, name),
  )


def _windows(hf: Any, name: str) -> dict[str, Any]:
  """`sliding_window` and `global_every` that give the layers' kinds."""
  window = getattr(hf, "sliding_window", None)
  kinds = getattr(hf, "layer_types", None)
  if kinds is None:
    return {"sliding_window": window}
  windowed = [kind == "sliding_attention" for kind in kinds]
  unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
  if unknown:
    raise ValueError(f"{name}: layer_types has {unknown}.")
  if not any(windowed):
    return {}
  if all(windowed):
    return {"sliding_window": window}
  every = windowed.index(False) + 1
  if windowed != [(i + 1) % every != 0 for i in range(len(windowed))]:
    raise ValueError(
      f"{name}: layer_types={kinds} is not supported: each n-th layer has to"
      " be 'full_attention' and the others 'sliding_attention'."
    )
  return {"sliding_window": window, "global_every": every}


def _rotary(hf: Any, name: str) -> dict[str, Any]:
  """Fields of the rotary positions."""
  found = dict(hf.rope_parameters)
  local: dict[str, Any] = {}
  if "full_attention" in found:
    found, inner = found["full_attention"], found["sliding_attention"]
    if inner["rope_type"] != "default":
      raise ValueError(
        f"{name}: rope_parameters of sliding_attention has rope_type="
        f"{inner['rope_type']!r}; only 'default' is supported."
      )
    local = {"rope_local_theta": float(inner["rope_theta"])}
  if float(found.get("partial_rotary_factor", 1.0)) != 1.0:
    raise ValueError(f"{name}: partial_rotary_factor is not supported.")
  fields = {"rope_theta": float(found["rope_theta"])} | local
  kind = found["rope_type"]
  if kind == "default":
    return fields
  if kind == "linear":
    return fields | {"rope_type": kind, "rope_factor": float(found["factor"])}
  if kind == "llama3":
    return fields | {
      "rope_type": kind,
      "rope_factor": float(found["factor"]),
      "rope_low_freq_factor": float(found["low_freq_factor"]),
      "rope_high_freq_factor": float(found["high_freq_factor"]),
      "rope_original_max_len": int(found["original_max_position_embeddings"]),
    }
  raise ValueError(
    f"{name}: rope_type={kind!r} is not supported ('default', 'linear' and"
    " 'llama3' are). If your sequences are no longer than the original context,"
    " remove the scaling from config.json."
  )


def hf_config(config: ModelConfig, *, reward: bool = False) -> Any:
  """The `transformers` config of a backbone: the inverse of `model_config`.

  Args:
    config: Shapes and switches of the model.
    reward: Whether it is a reward model (`...ForSequenceClassification`, one
      label) instead of a language model.

  Raises:
    ValueError: No supported architecture has this combination of switches.
  """
  family = _family(config)
  fields: dict[str, Any] = {
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "intermediate_size": config.mlp_width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "max_position_embeddings": config.max_len,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied_head,
    "rope_parameters": _rope_parameters(config),
  }
  activation = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
  named = "hidden_act"
  if family in ("gemma2", "gemma3_text"):
    named = "hidden_activation"
    fields |= {
      "query_pre_attn_scalar": _query_scalar(config),
      "attn_logit_softcapping": config.attn_softcap,
      "final_logit_softcapping": config.final_softcap,
    }
  fields[named] = activation[config.activation]
  if family in ("llama", "qwen3", *_GEMMAS):
    fields["attention_bias"] = config.qkv_bias
  if family == "llama":
    fields["mlp_bias"] = config.mlp_bias
  if family == "mistral":
    fields["sliding_window"] = config.sliding_window
  elif any(config.layer_is_windowed):
    fields["sliding_window"] = config.sliding_window
    fields["layer_types"] = [
      "sliding_attention" if windowed else "full_attention"
      for windowed in config.layer_is_windowed
    ]
    if family in ("qwen2", "qwen3"):
      fields["use_sliding_window"] = True
  if reward:
    fields["num_labels"] = 1
  made = import_transformers().AutoConfig.for_model(family, **fields)
  architecture = FAMILIES[family]
  if reward:
    architecture = architecture.replace("ForCausalLM", SEQ_CLS)
    if family == "gemma3_text":
      architecture = "Gemma3TextForSequenceClassification"
  made.architectures = [architecture]
  _require_round_trip(config, made)
  return made


def _family(config: ModelConfig) -> str:
  if config.norm_plus_one:
    if not config.post_norms:
      return "gemma"
    return "gemma3_text" if config.qk_norm else "gemma2"
  if config.qk_norm:
    return "qwen3"
  if config.qkv_bias and not config.out_bias:
    return "qwen2"
  return "llama" if config.sliding_window is None else "mistral"


def _query_scalar(config: ModelConfig) -> int:
  scale = config.query_scale
  found = config.head_dim if scale is None else scale**-2
  return round(found)  # transformers takes whole numbers alone


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
  found: dict[str, Any] = {
    "rope_type": config.rope_type,
    "rope_theta": config.rope_theta,
  }
  if config.rope_type != "default":
    found["factor"] = config.rope_factor
  if config.rope_type == "llama3":
    found |= {
      "low_freq_factor": config.rope_low_freq_factor,
      "high_freq_factor": config.rope_high_freq_factor,
      "original_max_position_embeddings": config.rope_original_max_len,
    }
  if config.rope_local_theta is None:
    return found
  local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
  return {"full_attention": found, "sliding_attention": local}


def _require_round_trip(config: ModelConfig, made: Any) -> None:
  """Checks that the exported config is read back as the same model."""
  ours = _normal(config)
  theirs = _normal(model_config(made, "the exported config"))
  differs = [
    f"{field}={ours[field]!r} would be {theirs.get(field)!r}"
    for field in sorted(ours)
    if field not in _OWN and not _same(ours[field], theirs.get(field))
  ]
  if differs:
    raise ValueError(
      "No Hugging Face architecture can express this model: as"
      f" {made.model_type}, {'; '.join(differs)}."
    )


def _normal(config: ModelConfig) -> dict[str, Any]:
  """Fields, with a window that no layer uses left out."""
  fields = config.to_dict()
  if config.query_scale is None:
    fields["query_scale"] = config.head_dim**-0.5
  if config.rope_type != "llama3":
    for name in ("low_freq_factor", "high_freq_factor", "original_max_len"):
      del fields[f"rope_{name}"]
  del fields["sliding_window"], fields["global_every"]
  window = config.sliding_window
  return fields | {
    "windows": [window if w else None for w in config.layer_is_windowed]
  }


def _same(ours: Any, theirs: Any) -> bool:
  if isinstance(ours, float) and isinstance(theirs, float):
    return abs(ours - theirs) <= 1e-9 * max(abs(ours), abs(theirs))
  return ours == theirs
