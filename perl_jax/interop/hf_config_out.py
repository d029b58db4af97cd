"""`config.json` of a model that is written: the inverse of `hf_config`.

Both spellings of a field are written where `transformers` 5 renamed it, as
others read the older one alone: `rope_theta` and `rope_scaling` beside
`rope_parameters`, `torch_dtype` beside `dtype`. Without the older ones they
would take their default, a theta of 10,000 for instance, and say nothing.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perl_jax import json_text
from perl_jax.data.text.hugging_face import import_transformers
from perl_jax.interop import hf_config as hf_config_lib
from perl_jax.interop.hf_config import FAMILIES, SEQ_CLS
from perl_jax.interop.hf_fields import GEMMAS, WITH_LAYER_TYPES
from perl_jax.models.config import ModelConfig

# Fields of ModelConfig that change how the model is computed, not its result.
_OWN = ("attention", "dtype", "remat", "scan_unroll")
# Fields of a released config.json that an export does not repeat: they are
# about its files and classes, or written anew.
_DROPPED = (
  "architectures", "auto_map", "dtype", "torch_dtype", "id2label", "label2id",
  "num_labels", "problem_type", "transformers_version", "transformers_weights",
  "configuration_files", "_name_or_path", "rope_parameters", "rope_scaling",
  "rope_theta", "rope_local_base_freq",
)  # fmt: skip
# Fields that together say which layers have a window. Those of the released
# file say the same as ours, and more to others.
_WINDOWS = ("layer_types", "sliding_window", "use_sliding_window")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def hf_config(
  config: ModelConfig, *, reward: bool = False, family: str | None = None
) -> Any:
  """The `transformers` config of a backbone.

  Args:
    config: Shapes and switches of the model.
    reward: Whether it is a reward model (`...ForSequenceClassification`, one
      label) instead of a language model.
    family: `model_type` to prefer among those that can express the model, as a
      Mistral without a window is a Llama too.

  Raises:
    ValueError: No supported architecture has this combination of switches.
  """
  if family in FAMILIES and family != _family(config):
    try:
      return _of_family(config, family, reward)
    except ValueError:
      pass  # that of the checkpoint it came from need not be able to
  return _of_family(config, _family(config), reward)


def _of_family(config: ModelConfig, family: str, reward: bool) -> Any:
  fields = _fields(config, family)
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


def settings(
  config: ModelConfig,
  *,
  reward: bool,
  dtype: str,
  ids: Mapping[str, Any],
  like: Mapping[str, Any],
) -> dict[str, Any]:
  """The contents of config.json.

  Args:
    config: Shapes and switches of the model.
    reward: Whether it is a reward model.
    dtype: Dtype of the weights.
    ids: bos_token_id, eos_token_id and pad_token_id.
    like: Fields of the config.json that the model came with, {} if there is
      none. What says nothing about the arithmetic is kept.
  """
  family = like.get("model_type")
  made = hf_config(config, reward=reward, family=family)
  found = made.to_dict()
  if made.model_type == family:
    fixed = {*_DROPPED, *_IDS, *_fields(config, family)} - {*_WINDOWS}
    found |= {name: like[name] for name in like if name not in fixed}
  found |= _older_spellings(config, found) | dict(ids)
  return found | {"dtype": dtype, "torch_dtype": dtype}


def _older_spellings(config, found) -> dict[str, Any]:
  """Fields for readers that do not know the names of `transformers` 5."""
  rope = dict(found["rope_parameters"])
  older: dict[str, Any] = {}
  if "full_attention" in rope:
    local, rope = rope["sliding_attention"], dict(rope["full_attention"])
    older["rope_local_base_freq"] = local["rope_theta"]
  older["rope_theta"] = rope.pop("rope_theta")
  scaled = rope["rope_type"] != "default"
  # "type" was the name before "rope_type".
  older["rope_scaling"] = rope | {"type": rope["rope_type"]} if scaled else None
  windowed = config.layer_is_windowed
  if "max_window_layers" in found and any(windowed):
    older["max_window_layers"] = windowed.index(True)
  return older


def released(
  directory: str | os.PathLike, config: ModelConfig
) -> dict[str, Any]:
  """Fields of the config.json in a directory if it is of the same model, or {}.

  Args:
    directory: Where the files of the model that was trained lie.
    config: Shapes and switches of the model that is written.
  """
  path = Path(directory) / "config.json"
  try:
    hf = hf_config_lib.load_hf_config(directory)
    found = hf_config_lib.model_config(hf, str(path))
  except (FileNotFoundError, ValueError):
    return {}
  # A reward model has no head for tokens, whatever its file says of one.
  found = dataclasses.replace(found, tied_head=config.tied_head)
  fields = json_text.read_object(path)
  if hf_config_lib.is_nested(hf):
    ids = {name: fields[name] for name in _IDS if name in fields}
    text = fields.get("text_config") or {}
    fields = text | {"model_type": hf.text_config.model_type}
    fields |= ids
  return {} if _differences(config, found) else fields


def _fields(config: ModelConfig, family: str) -> dict[str, Any]:
  """Fields of the config class of a family that say what the model is."""
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
  if family in ("llama", "qwen3", *GEMMAS):
    fields["attention_bias"] = config.qkv_bias
  if family == "llama":
    fields["mlp_bias"] = config.mlp_bias
  windowed = config.layer_is_windowed
  if family == "mistral" or any(windowed):
    fields["sliding_window"] = config.sliding_window
  if family in WITH_LAYER_TYPES:
    kinds = "full_attention", "sliding_attention"
    fields["layer_types"] = [kinds[w] for w in windowed]
  if family in ("qwen2", "qwen3"):
    fields["use_sliding_window"] = any(windowed)
  if family == "gemma3_text":
    # Older readers know the period alone; 1 makes every layer global.
    period = config.global_every or len(windowed) + 1
    fields["sliding_window_pattern"] = period if any(windowed) else 1
  return fields


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
  if config.rope_type == "yarn":
    found |= {
      "beta_slow": config.rope_low_freq_factor,
      "beta_fast": config.rope_high_freq_factor,
      "original_max_position_embeddings": config.rope_original_max_len,
      "attention_factor": config.rope_attention_factor,
      "truncate": config.rope_truncate,
    }
  if config.rope_local_theta is None:
    return found
  local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
  return {"full_attention": found, "sliding_attention": local}


def _require_round_trip(config: ModelConfig, made: Any) -> None:
  """Checks that the exported config is read back as the same model."""
  found = hf_config_lib.model_config(made, "the exported config")
  differs = _differences(config, found)
  if differs:
    raise ValueError(
      "No Hugging Face architecture can express this model: as"
      f" {made.model_type}, {'; '.join(differs)}."
    )


def _differences(config: ModelConfig, found: ModelConfig) -> list[str]:
  """Fields in which two configs are not the same model."""
  ours, theirs = _normal(config), _normal(found)
  return [
    f"{field}={ours[field]!r} would be {theirs.get(field)!r}"
    for field in sorted(ours)
    if field not in _OWN and not _same(ours[field], theirs.get(field))
  ]


def _normal(config: ModelConfig) -> dict[str, Any]:
  """Fields, with a window that no layer uses left out."""
  fields = config.to_dict()
  if config.query_scale is None:
    fields["query_scale"] = config.head_dim**-0.5
  if config.rope_type not in ("llama3", "yarn"):
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
