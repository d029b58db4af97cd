"""Metadata of a GGUF file, to a `ModelConfig`.

Most switches of a family follow from its architecture; some from which tensors
there are (biases, a head of its own). A key of the architecture that is not
known here could change the model, and is refused.

Reference: llama.cpp, `src/llama-model.cpp`, for what a missing key means.
"""

import math
from typing import Any

import numpy as np

from perl_jax.interop import values
from perl_jax.interop.gguf import names
from perl_jax.interop.gguf.reading import File
from perl_jax.models.config import ModelConfig

_GEMMAS = ("gemma", "gemma2", "gemma3")
_NUMBER = (int, float)
# Keys below the architecture that are read, or say nothing about the model.
_READ = {
  "attention.head_count", "attention.head_count_kv", "attention.key_length",
  "attention.value_length", "attention.layer_norm_rms_epsilon",
  "attention.sliding_window", "block_count", "context_length",
  "embedding_length", "feed_forward_length", "rope.dimension_count",
  "rope.dimension_count_swa", "rope.freq_base", "rope.scaling.factor",
  "rope.scaling.type", "rope.scale_linear",
}  # fmt: skip
_HEAD_SIZES = (
  "attention.value_length", "rope.dimension_count", "rope.dimension_count_swa",
)  # fmt: skip
# Those that llama.cpp reads in some families only.
_READ_IN = {
  "attention.sliding_window_pattern": ("gemma2", "gemma3"),
  "attn_logit_softcapping": ("gemma2",),
  "final_logit_softcapping": ("gemma2", "gemma3"),
  "rope.freq_base_swa": ("gemma3",),
}
# The original context counts with "yarn" alone, which is refused.
_HARMLESS = {
  "rope.scaling.finetuned", "rope.scaling.original_context_length",
  "vocab_size",
}  # fmt: skip
# Keys that change nothing at these values.
_NEUTRAL = {
  "attention.causal": True,
  "expert_count": 0,
  "expert_used_count": 0,
  "tensor_data_layout": "reference",
  "use_parallel_residual": True,
  "rope.scaling.attn_factor": 1.0,
  "attention.max_alibi_bias": 0.0,
  "attention.clamp_kqv": 0.0,
  "logit_scale": 1.0,
  "pooling_type": 0,
}
_ROPE_FACTORS = "rope_freqs.weight"
# (low, high, original context) of "llama3" scaling: Llama 3.1, 3.2 and 3.3.
_LLAMA3 = ((1.0, 4.0, 8192),)


def architecture(file: File) -> str:
  """The architecture of a file.

  Raises:
    ValueError: It is not supported; names those that are.
  """
  found = file.get("general.architecture", str)
  if found not in names.ARCHITECTURES:
    raise ValueError(
      f"{file.path}: general.architecture={found!r} is not supported."
      f" Supported: {', '.join(names.ARCHITECTURES)}."
    )
  return found


def model_config(file: File) -> ModelConfig:
  """The backbone that a GGUF file holds.

  Raises:
    ValueError: A key is missing, or has a value that the backbone cannot
      express; names the file and the key.
  """
  family = architecture(file)
  gemma = family in _GEMMAS
  _require_known(file, family)

  def size(key: str, default: int | None = None) -> int:
    return _size(file, f"{family}.{key}", default)

  layers, width = size("block_count"), size("embedding_length")
  heads = size("attention.head_count")
  head_dim = size("attention.key_length", width // heads)
  for key in _HEAD_SIZES:
    if (found := size(key, head_dim)) != head_dim:
      raise file.error(
        f"{family}.{key}",
        f"is {found}, and keys have {head_dim}, which is not supported",
      )
  first, last = "blk.0.", f"blk.{layers - 1}."
  if not any(name.startswith(last) for name in file.tensors):
    raise file.error(
      f"{family}.block_count", f"is {layers}, and no tensor begins with {last}"
    )
  fields = dict(
    vocab_size=_rows(file, "token_embd.weight"),
    num_layers=layers,
    width=width,
    mlp_width=size("feed_forward_length"),
    num_heads=heads,
    num_kv_heads=size("attention.head_count_kv", heads),
    head_dim=head_dim,
    max_len=size("context_length"),
    activation="gelu_tanh" if gemma else "silu",
    norm_eps=_number(file, f"{family}.attention.layer_norm_rms_epsilon"),
    norm_plus_one=gemma,
    embed_scale=gemma,
    post_norms=family in ("gemma2", "gemma3"),
    qk_norm=family in ("qwen3", "gemma3"),
    qkv_bias=f"{first}attn_q.bias" in file.tensors,
    out_bias=f"{first}attn_output.bias" in file.tensors,
    mlp_bias=f"{first}ffn_up.bias" in file.tensors,
    tied_head="output.weight" not in file.tensors,
    query_scale=_query_scale(family, layers, width, heads),
    **_softcaps(file, family),
    **_windows(file, family, layers),
    **_rotary(file, family, head_dim),
  )
  try:
    return ModelConfig(**fields)
  except ValueError as error:
    raise ValueError(f"{file.path}: {error}") from error


def _require_known(file: File, family: str) -> None:
  for key, value in file.metadata.items():
    part = key.removeprefix(f"{family}.")
    if part == key or part in _READ or part in _HARMLESS:
      continue
    if family in _READ_IN.get(part, ()):
      continue
    if part in _NEUTRAL and value == _NEUTRAL[part]:
      continue
    raise file.error(key, f"is {value!r}, which is not supported")


def _size(file: File, key: str, default: int | None) -> int:
  """A positive whole number; a list of them, one a layer, if all are equal."""
  found = file.metadata.get(key, default)
  if isinstance(found, list) and found and len(set(found)) == 1:
    found = found[0]
  if isinstance(found, list):
    raise file.error(key, f"is {found[:8]}: layers of several shapes")
  if found is None:
    raise file.error(key, "is missing")
  if type(found) is not int or found < 1:
    raise file.error(key, f"is {found!r}, expected a number of at least 1")
  return found


def _number(file: File, key: str, default: float | None = None) -> float:
  """A float32 of the file as the decimal that it was written as."""
  found = file.get(key, _NUMBER, default)
  if not 0 <= found < values.LARGEST:
    raise file.error(key, f"is {found!r}, expected a number of at least 0")
  return float(str(np.float32(found)))


def _base(file: File, key: str) -> float:
  """Base of rotary frequencies, 10,000 where the file has none."""
  found = _number(file, key, 10_000.0)
  if not found:
    raise file.error(key, "is 0, expected a number above 0")
  return found


def _rows(file: File, name: str) -> int:
  if name not in file.tensors:
    raise file.error(name, "is missing from the tensors")
  return file.tensors[name].shape[0]


def _query_scale(family, layers, width, heads) -> float | None:
  """What llama.cpp takes for these families, whatever keys there are."""
  # The 27 B of Gemma 2 and of Gemma 3, known there by their layers.
  if (family, layers) in (("gemma2", 46), ("gemma3", 62)):
    return (width / heads) ** -0.5
  return None


def _softcaps(file: File, family: str) -> dict[str, Any]:
  # Where an older file has no key, llama.cpp takes what was released.
  released = {"gemma2": (50.0, 30.0)}.get(family, (0.0, 0.0))
  keys = ("attn_logit_softcapping", "final_logit_softcapping")
  found = [
    _number(file, f"{family}.{key}", default)
    for key, default in zip(keys, released, strict=True)
  ]
  return {"attn_softcap": found[0] or None, "final_softcap": found[1] or None}


def _windows(file: File, family: str, layers: int) -> dict[str, Any]:
  key = f"{family}.attention.sliding_window"
  every = {"gemma2": 2, "gemma3": 6}.get(family, 0)
  window = file.get(key, int, 4096 if family == "gemma2" else 0)
  if not window:
    return {}
  pattern = f"{key}_pattern"
  kinds = file.metadata.get(pattern)
  if type(kinds) is int:
    every = kinds
  elif kinds is not None and not isinstance(kinds, list):
    raise file.error(pattern, f"is {kinds!r}, expected a number or a list")
  elif kinds is not None:
    expected = [(i + 1) % every != 0 if every else True for i in range(layers)]
    if list(map(bool, kinds)) != expected:
      raise file.error(pattern, f"is {kinds}, expected {expected}")
  elif not every and family != "llama":  # Mistral windows all of them
    raise file.error(key, f"is {window}, and nothing says in which layers")
  if not 0 < window < 2**31 or every < 0:
    raise file.error(key, f"is {window}, with every {every}th layer global")
  return {"sliding_window": window, "global_every": every}


def _rotary(file: File, family: str, head_dim: int) -> dict[str, Any]:
  theta = _base(file, f"{family}.rope.freq_base")
  fields: dict[str, Any] = {"rope_theta": theta}
  if family == "gemma3":
    local = _base(file, f"{family}.rope.freq_base_swa")
    fields["rope_local_theta"] = local
  key = f"{family}.rope.scaling.type"
  kind = file.get(key, str, "none")
  older = _number(file, f"{family}.rope.scale_linear", 0.0)
  factor = _number(file, f"{family}.rope.scaling.factor", older)
  if kind not in ("none", "linear"):
    raise file.error(key, f"is {kind!r}, which is not supported")
  # Without a type a factor is linear.
  linear = kind == "linear" or key not in file.metadata
  scaled = linear and factor not in (0.0, 1.0)
  if _ROPE_FACTORS in file.tensors:
    if scaled or family != "llama":
      raise file.error(
        _ROPE_FACTORS,
        f"divides rotary frequencies, which is supported in a llama whose"
        f" {family}.rope.scaling.factor is 1",
      )
    return fields | _llama3(file, theta, head_dim)
  if scaled:
    return fields | {"rope_type": "linear", "rope_factor": factor}
  return fields


def _llama3(file: File, theta: float, head_dim: int) -> dict[str, Any]:
  """The "llama3" scaling that gives the file's divisors of the frequencies."""
  divisors = file.read(_ROPE_FACTORS)
  turns = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
  factor = float(divisors.max(initial=1.0))
  for low, high, context in _LLAMA3:
    share = np.clip((turns * context - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - share) / factor + share)
    if divisors.shape == expected.shape and np.allclose(
      divisors, expected, rtol=1e-4
    ):
      return {
        "rope_type": "llama3",
        "rope_factor": factor,
        "rope_low_freq_factor": low,
        "rope_high_freq_factor": high,
        "rope_original_max_len": context,
      }
  raise file.error(
    _ROPE_FACTORS,
    "has divisors of the rotary frequencies that are not those of Llama 3.1,"
    " which alone are supported",
  )
