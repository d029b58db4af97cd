"""Fields of a `transformers` config as those of a `ModelConfig`.

Only what the model of a family reads there counts. Every error names the file,
the field and its value.
"""

import math
from collections.abc import Mapping
from typing import Any

from perl_jax.interop import values

# Fields of whole numbers; head_dim may be missing or null.
_SIZES = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
  "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
  "head_dim",
)  # fmt: skip
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
}
WITH_LAYER_TYPES = ("qwen2", "qwen3", "gemma2", "gemma3_text")
GEMMAS = ("gemma", "gemma2", "gemma3_text")


def shapes(text: Any, name: str) -> dict[str, Any]:
  """Numbers of the config, checked under the names that the file has."""
  found = {field: getattr(text, field, None) for field in _SIZES}
  for field, value in found.items():
    if value is not None or field != "head_dim":
      _require_size(value, field, name)
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


def _require_size(value: Any, field: str, name: str) -> None:
  if not values.is_count(value):
    raise ValueError(
      f"{name}: {field}={value!r} must be a whole number of at least 1."
    )


def _number(value: Any, field: str, name: str) -> float:
  """A number of at least 0 that float32 has, as it stands in the file."""
  if not values.is_number(value):
    raise ValueError(f"{name}: {field}={value!r} must be a number.")
  if not 0 <= value < values.LARGEST:
    raise ValueError(
      f"{name}: {field}={value!r:.60} must be at least 0 and finite in float32."
    )
  return float(value)


def _positive(value: Any, field: str, name: str) -> float:
  """The same above 0: the model divides by it, or takes its power."""
  found = _number(value, field, name)
  if not found:
    raise ValueError(f"{name}: {field}={value!r} must be above 0.")
  return found


def softcap(text: Any, field: str, name: str) -> float | None:
  """The bound of logits or scores in a field; None is off."""
  value = getattr(text, field)
  return None if value is None else _positive(value, field, name)


def flag(text: Any, field: str, name: str) -> bool:
  """A field that is true or false."""
  value = getattr(text, field)
  if not isinstance(value, bool):
    raise ValueError(f"{name}: {field}={value!r:.60} must be true or false.")
  return value


def switches(text: Any, family: str, name: str) -> dict[str, Any]:
  """What the family computes, and the fields that it reads for that."""
  gemma = family in GEMMAS
  field = "hidden_act"
  if family in ("gemma2", "gemma3_text"):
    field = "hidden_activation"
  activation = getattr(text, field)
  if family == "gemma" and activation == "gelu":
    # The first releases say "gelu" and mean its approximation by tanh.
    activation = "gelu_pytorch_tanh"
  if not isinstance(activation, str) or activation not in _ACTIVATIONS:
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
    bias = flag(text, "attention_bias", name)
    found["qkv_bias"] = found["out_bias"] = bias
  if family == "llama":
    found["mlp_bias"] = flag(text, "mlp_bias", name)
  if family == "qwen2":
    found["qkv_bias"] = True
  if family in ("qwen3", "gemma3_text"):
    found["qk_norm"] = True
  if family in ("gemma2", "gemma3_text"):
    scalar = text.query_pre_attn_scalar
    scalar = _positive(scalar, "query_pre_attn_scalar", name)
    found |= {"post_norms": True, "query_scale": scalar**-0.5}
  if family == "gemma2":  # Gemma 3 has the field as well, and does not read it
    found["attn_softcap"] = softcap(text, "attn_logit_softcapping", name)
  return found


def windows(text: Any, family: str, name: str) -> dict[str, Any]:
  """`sliding_window` and `global_every` that give the layers' kinds."""
  window = getattr(text, "sliding_window", None)
  if family == "mistral":
    if window is not None:
      _require_size(window, "sliding_window", name)
    return {"sliding_window": window}
  if family not in WITH_LAYER_TYPES:
    return {}
  kinds = text.layer_types
  known = ("sliding_attention", "full_attention")
  unknown = [kind for kind in kinds if kind not in known]
  if unknown:
    raise ValueError(f"{name}: layer_types has {unknown[0]!r:.60}.")
  windowed = [kind == "sliding_attention" for kind in kinds]
  if not any(windowed):
    return {}
  if window is None:
    raise ValueError(
      f"{name}: layer_types has 'sliding_attention', but sliding_window is not"
      " set (or use_sliding_window is false)."
    )
  _require_size(window, "sliding_window", name)
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


def _yarn(found: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Fields of YaRN, with what `transformers` takes for those that are absent.

  It reads no `attn_factor`, and neither does this.

  Args:
    found: The `rope_parameters`; their `factor` has been checked.
    name: What errors call the config.
  """
  factor = float(found["factor"])

  def number(field: str, absent: float | None = None) -> float | None:
    value = found.get(field)
    if value is None or value == 0:
      return absent
    return _positive(value, f"rope_parameters: {field}", name)

  slow, fast = number("beta_slow", 1.0), number("beta_fast", 32.0)
  if slow >= fast:
    raise ValueError(
      f"{name}: rope_parameters: beta_slow={slow} must be below"
      f" beta_fast={fast}."
    )

  def scale(weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

  attention = number("attention_factor")
  if attention is None:
    over, under = number("mscale"), number("mscale_all_dim")
    both = over is not None and under is not None
    attention = scale(over) / scale(under) if both else scale()
  return {
    "rope_low_freq_factor": slow,
    "rope_high_freq_factor": fast,
    "rope_truncate": bool(found.get("truncate", True)),
    "rope_attention_factor": attention,
  }


def rotary(text: Any, name: str) -> dict[str, Any]:
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
    theta = _positive(inner["rope_theta"], "rope_local_base_freq", name)
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
    return _positive(found[field], f"rope_parameters: {field}", name)

  fields = {"rope_theta": number("rope_theta")} | local
  kind = found["rope_type"]
  if kind == "default":
    return fields
  if kind in ("linear", "llama3", "yarn"):
    fields |= {"rope_type": kind, "rope_factor": number("factor")}
  if kind == "linear":
    return fields
  if kind in ("llama3", "yarn"):
    original = "original_max_position_embeddings"
    _require_size(found.get(original), f"rope_parameters: {original}", name)
    fields["rope_original_max_len"] = found[original]
  if kind == "yarn":
    return fields | _yarn(found, name)
  if kind == "llama3":
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if low >= high:
      raise ValueError(
        f"{name}: rope_parameters: low_freq_factor={low} must be below"
        f" high_freq_factor={high}."
      )
    return fields | {
      "rope_low_freq_factor": low,
      "rope_high_freq_factor": high,
    }
  raise ValueError(
    f"{name}: rope_type={kind!r} is not supported ('default', 'linear',"
    f" 'llama3' and 'yarn' are).{_ROPE_ADVICE.get(kind, '')}"
  )
