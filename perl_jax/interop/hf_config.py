"""`config.json` of a Hugging Face checkpoint, to a `ModelConfig`.

`transformers` parses the file, so that old and new spellings of a field are
accepted (rope_scaling and rope_parameters, for instance) and the defaults are
those of `transformers`. A field counts if the model of that family reads it
there: the window of a Mistral does, one in the config of a Llama does not.
`hf_config_out` is the way back.
"""

import os
from collections.abc import Mapping
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
# Models that see images too, whose language model is one of these families.
NESTED = ("gemma3",)
SEQ_CLS = "ForSequenceClassification"
GEMMAS = ("gemma", "gemma2", "gemma3_text")

# Fields of whole numbers, and those of them that may be missing or null.
_SIZES = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
  "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
  "head_dim", "sliding_window",
)  # fmt: skip
_OPTIONAL = ("head_dim", "sliding_window")
_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
}
_ROPE_ADVICE = {
  "dynamic": " Up to max_position_embeddings it changes nothing: remove it from"
  " config.json.",
  "yarn": " If it was added to the released config.json for longer contexts,"
  " remove it.",
}
_WITH_LAYER_TYPES = ("qwen2", "qwen3", "gemma2", "gemma3_text")


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
  transformers = import_transformers()
  local: dict[str, Any] = {"local_files_only": True}
  try:
    fields, _ = transformers.PreTrainedConfig.get_config_dict(
      str(directory), **local
    )
  except Exception as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if not isinstance(fields, dict):
    raise ValueError(f"{path} holds no JSON object.")
  _require_supported(fields, path)
  text = fields.get("text_config") or {}
  _require_plain(text if fields["model_type"] in NESTED else fields, path)
  try:
    return transformers.AutoConfig.from_pretrained(
      str(directory), trust_remote_code=False, **local
    )
  except Exception as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def _require_supported(fields: Mapping[str, Any], path: Path) -> None:
  """Checks the family, and that the weights are not quantised."""
  supported = f"Supported: {', '.join(sorted([*FAMILIES, *NESTED]))}."
  kind = fields.get("model_type")
  if kind is None:
    raise ValueError(
      f"{path} has no model_type, without which transformers does not read it"
      f" either. Add that of its architectures={fields.get('architectures')!r},"
      f" as in 'model_type': 'llama'. {supported}"
    )
  if kind == "mistral" and "layer_types" in fields:
    raise ValueError(
      f"{path}: model_type='mistral' with layer_types is what transformers"
      f" reads as 'ministral', which is not supported. {supported}"
    )
  if kind not in FAMILIES and kind not in NESTED:
    raise ValueError(
      f"{path}: model_type={kind!r} is not supported. {supported}"
    )
  nested = fields.get("text_config")
  for name in ("quantization_config", "compression_config"):
    for part in (fields, nested if isinstance(nested, dict) else {}):
      if part.get(name) is not None:
        raise ValueError(
          f"{path}: the checkpoint is quantised ({name}). Give the checkpoint"
          " it was made from."
        )


def _require_plain(fields: Any, path: Path) -> None:
  """Checks fields that change the model of every family."""
  if not isinstance(fields, dict):
    raise ValueError(f"{path}: text_config={fields!r} is no JSON object.")
  if not fields.get("is_causal", True):
    raise ValueError(
      f"{path}: is_causal={fields['is_causal']!r} is not supported: tokens"
      " would see those that follow them."
    )
  if fields.get("per_layer_config"):
    raise ValueError(
      f"{path}: per_layer_config is not supported: all layers have one shape."
    )


def is_nested(hf: Any) -> bool:
  """Whether a config is of a larger model around the language model."""
  return hf.model_type in NESTED


def model_config(hf: Any, name: str) -> ModelConfig:
  """The backbone that a `transformers` config describes.

  Args:
    hf: From `load_hf_config`.
    name: Name of the checkpoint, for error messages.

  Raises:
    ValueError: A field has a value that the backbone cannot express.
  """
  text = hf.text_config if is_nested(hf) else hf
  family = text.model_type
  if family not in FAMILIES:
    raise ValueError(
      f"{name}: text_config has model_type={family!r}, which is not supported"
      f" within {hf.model_type!r}."
    )
  softcap = None
  if family in ("gemma2", "gemma3_text") and not is_nested(hf):
    # With a vision tower, Gemma 3 has the field and does not read it.
    softcap = text.final_logit_softcapping
  try:
    return ModelConfig(
      **_shapes(text, name),
      **_switches(text, family, name),
      final_softcap=softcap,
      tied_head=bool(hf.tie_word_embeddings),
      **_windows(text, family, name),
      **_rotary(text, name),
    )
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"{name} cannot be used: {error!r}.") from error


def _shapes(text: Any, name: str) -> dict[str, Any]:
  """Numbers of the config, checked under the names that the file has."""
  found = {field: getattr(text, field, None) for field in _SIZES}
  for field, value in found.items():
    if value is None and field in _OPTIONAL:
      continue
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(
        f"{name}: {field}={value!r} must be a whole number of at least 1."
      )
  heads, kv_heads = found["num_attention_heads"], found["num_key_value_heads"]
  if heads % kv_heads:
    raise ValueError(
      f"{name}: num_attention_heads={heads} is not a multiple of"
      f" num_key_value_heads={kv_heads}."
    )
  head_dim = found["head_dim"] or found["hidden_size"] // heads
  if head_dim % 2:
    raise ValueError(
      f"{name}: a head of odd size, head_dim={head_dim}, cannot be rotated."
    )
  return {
    "vocab_size": found["vocab_size"],
    "num_layers": found["num_hidden_layers"],
    "width": found["hidden_size"],
    "mlp_width": found["intermediate_size"],
    "num_heads": heads,
    "num_kv_heads": kv_heads,
    "head_dim": head_dim,
    "max_len": found["max_position_embeddings"],
    "norm_eps": _number(text.rms_norm_eps, "rms_norm_eps", name),
  }


def _number(value: Any, field: str, name: str) -> float:
  """A finite number of at least 0, as the file has it."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(f"{name}: {field}={value!r} must be a number.")
  if not 0 <= value < float("inf"):
    raise ValueError(f"{name}: {field}={value!r} must be at least 0.")
  return float(value)


def _switches(text: Any, family: str, name: str) -> dict[str, Any]:
  """What the family computes, and the fields that it reads for that."""
  gemma = family in GEMMAS
  field = "hidden_act"
  if family in ("gemma2", "gemma3_text"):
    field = "hidden_activation"
  activation = getattr(text, field)
  if family == "gemma" and activation == "gelu":
    # The first releases say "gelu" and mean its approximation by tanh.
    activation = "gelu_pytorch_tanh"
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f"{name}: {field}={activation!r} is not one of {sorted(_ACTIVATIONS)}."
    )
  if gemma and getattr(text, "use_bidirectional_attention", None):
    raise ValueError(f"{name}: use_bidirectional_attention is not supported.")
  found: dict[str, Any] = {
    "activation": _ACTIVATIONS[activation],
    "norm_plus_one": gemma,
    "embed_scale": gemma,
  }
  if family in ("llama", "qwen3") or gemma:
    found["qkv_bias"] = found["out_bias"] = bool(text.attention_bias)
  if family == "llama":
    found["mlp_bias"] = bool(text.mlp_bias)
  if family == "qwen2":
    found["qkv_bias"] = True
  if family in ("qwen3", "gemma3_text"):
    found["qk_norm"] = True
  if family in ("gemma2", "gemma3_text"):
    scalar = text.query_pre_attn_scalar
    scalar = _number(scalar, "query_pre_attn_scalar", name)
    found |= {"post_norms": True, "query_scale": scalar**-0.5}
  if family == "gemma2":  # Gemma 3 has the field as well, and does not read it
    found["attn_softcap"] = text.attn_logit_softcapping
  return found


def _windows(text: Any, family: str, name: str) -> dict[str, Any]:
  """`sliding_window` and `global_every` that give the layers' kinds."""
  window = getattr(text, "sliding_window", None)
  if family == "mistral":
    return {"sliding_window": window}
  if family not in _WITH_LAYER_TYPES:
    return {}
  kinds = text.layer_types
  unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
  if unknown:
    raise ValueError(f"{name}: layer_types has {unknown}.")
  windowed = [kind == "sliding_attention" for kind in kinds]
  if not any(windowed):
    return {}
  if window is None:
    raise ValueError(
      f"{name}: layer_types has 'sliding_attention', but sliding_window is not"
      " set (or use_sliding_window is false)."
    )
  if all(windowed):
    return {"sliding_window": window}
  every = windowed.index(False) + 1
  if windowed != [(i + 1) % every != 0 for i in range(len(windowed))]:
    raise ValueError(
      f"{name}: layer_types={kinds} is not supported (from max_window_layers,"
      " if the file has no layer_types): each n-th layer has to be"
      " 'full_attention' and the others 'sliding_attention'."
    )
  return {"sliding_window": window, "global_every": every}


def _rotary(text: Any, name: str) -> dict[str, Any]:
  """Fields of the rotary positions."""
  found = dict(text.rope_parameters)
  local: dict[str, Any] = {}
  if text.model_type == "gemma3_text":
    found, inner = found["full_attention"], found["sliding_attention"]
    if inner["rope_type"] != "default":
      raise ValueError(
        f"{name}: rope_parameters of sliding_attention has rope_type="
        f"{inner['rope_type']!r}; only 'default' is supported."
      )
    theta = _number(inner["rope_theta"], "rope_local_base_freq", name)
    local = {"rope_local_theta": theta}
  missing = {"rope_type", "rope_theta"} - found.keys()
  if missing:
    raise ValueError(
      f"{name}: rope_parameters={found} has no {', '.join(sorted(missing))}."
    )
  if found.get("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError(
      f"{name}: partial_rotary_factor={found['partial_rotary_factor']!r} is not"
      " supported."
    )

  def number(field: str) -> float:
    if field not in found:
      raise ValueError(f"{name}: rope_parameters={found} has no {field}.")
    return _number(found[field], f"rope_parameters: {field}", name)

  fields = {"rope_theta": number("rope_theta")} | local
  kind = found["rope_type"]
  if kind == "default":
    return fields
  if kind == "linear":
    return fields | {"rope_type": kind, "rope_factor": number("factor")}
  if kind == "llama3":
    return fields | {
      "rope_type": kind,
      "rope_factor": number("factor"),
      "rope_low_freq_factor": number("low_freq_factor"),
      "rope_high_freq_factor": number("high_freq_factor"),
      "rope_original_max_len": int(number("original_max_position_embeddings")),
    }
  raise ValueError(
    f"{name}: rope_type={kind!r} is not supported ('default', 'linear' and"
    f" 'llama3' are).{_ROPE_ADVICE.get(kind, '')}"
  )
