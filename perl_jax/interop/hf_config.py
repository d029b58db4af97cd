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

from perl_jax import json_text
from perl_jax.data.text import unreadable
from perl_jax.data.text.hugging_face import import_transformers
from perl_jax.interop import hf_fields
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
_ANY = tuple(FAMILIES)
# Models that see images too, and the families that their language model may be
# of. Without an image their logits are those of that model alone, which does
# not hold of PaliGemma (tokens of the prompt see each other).
NESTED = {
  "gemma3": ("gemma3_text",),
  "internvl": _ANY,
  "llava": _ANY,
  "llava_next": _ANY,
  "llava_onevision": _ANY,
  "mistral3": _ANY,
  "vipllava": _ANY,
}
# Those of which transformers has a class with a score too.
NESTED_SCORED = ("gemma3",)
SEQ_CLS = "ForSequenceClassification"
_DTYPES = (
  "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_DTYPE_FIELDS = ("dtype", "torch_dtype")


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
      + instead(Path(directory))
    )
  json_text.read_object(path, "Download it again, or repair it.")
  transformers = import_transformers()
  local: dict[str, Any] = {"local_files_only": True}
  try:
    fields, _ = transformers.PreTrainedConfig.get_config_dict(
      str(directory), **local
    )
  except Exception as error:
    if unreadable.has_mark(path):
      raise ValueError(f"{path} {unreadable.MARKED}") from error
    raise ValueError(f"{path} cannot be read: {_line(error)}") from error
  if not isinstance(fields, dict):
    raise ValueError(f"{path} holds no JSON object.")
  _require_supported(fields, path)
  _require_plain(_text_fields(fields, path), path)
  if any(fields.get(n) not in (None, *_DTYPES) for n in _DTYPE_FIELDS):
    local["dtype"] = "float32"  # which no weight is read in
  try:
    return transformers.AutoConfig.from_pretrained(
      str(directory), trust_remote_code=False, **local
    )
  except Exception as error:
    raise ValueError(f"{path} cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
  """What `transformers` says, in one line."""
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text}"


def instead(directory: Path) -> str:
  """Which directory to give instead, if it can be told."""
  snapshots = sorted((directory / "snapshots").glob("*/config.json"))
  if snapshots:  # a folder of the hub's cache
    return f" Give {snapshots[-1].parent}."
  below = [path.parent.name for path in directory.glob("*/config.json")]
  if below:  # what a trainer has saved
    return f" Give one of those below it: {', '.join(sorted(below))}."
  name = os.path.relpath(directory)
  parts = Path(name).parts
  if len(parts) == 2 and ".." not in parts and not directory.parent.exists():
    return (
      " If that is the name of a model on the hub, download it first (`hf"
      f" download {name} --local-dir DIR`) and give DIR."
    )
  return ""


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
  nested = fields.get("text_config")
  nested = nested if isinstance(nested, dict) else {}
  for part in (fields, nested):
    if part.get("model_type") == "mistral" and "layer_types" in part:
      raise ValueError(
        f"{path}: model_type='mistral' with layer_types is what transformers"
        f" reads as 'ministral', which is not supported. {supported}"
      )
  if not isinstance(kind, str) or kind not in {**FAMILIES, **NESTED}:
    raise ValueError(
      f"{path}: model_type={kind!r} is not supported."
      f"{_language_model(fields)} {supported}"
    )
  for name in ("quantization_config", "compression_config"):
    for part in (fields, nested):
      if part.get(name) is not None:
        raise ValueError(
          f"{path}: the checkpoint is quantised ({name}). Give the checkpoint"
          " it was made from; or remove the field, if its tensors are plain"
          " floats."
        )


def _language_model(fields: Mapping[str, Any]) -> str:
  """A way out for a model around a language model that is supported."""
  text = fields.get("text_config")
  kind = text.get("model_type") if isinstance(text, dict) else None
  if kind not in FAMILIES:
    return ""
  return (
    f" The language model within it (text_config) is {kind!r}, which is: save"
    " that alone, with its lm_head, as a checkpoint of its own."
  )


def _text_fields(fields: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
  """The fields of the language model, which may be a part of the whole."""
  kind = fields["model_type"]
  if kind not in NESTED:
    return fields
  text = fields.get("text_config") or {}
  if not isinstance(text, dict):
    raise ValueError(f"{path}: text_config={text!r} is no JSON object.")
  if "model_type" in text and text["model_type"] not in NESTED[kind]:
    raise ValueError(
      f"{path}: text_config has model_type={text['model_type']!r}; within"
      f" {kind!r} it can only be {', '.join(NESTED[kind])}."
    )
  return text


def _require_plain(fields: Mapping[str, Any], path: Path) -> None:
  """Checks fields that change the model of every family."""
  for name in ("rope_parameters", "rope_scaling"):
    if not isinstance(fields.get(name) or {}, dict):
      raise ValueError(f"{path}: {name}={fields[name]!r} is no JSON object.")
  for name in _DTYPE_FIELDS:
    value = fields.get(name)
    if isinstance(value, str):  # as some write it, by str(torch.bfloat16)
      value = value.removeprefix("torch.")
    if value not in (None, "auto", *_DTYPES):
      raise ValueError(
        f"{path}: {name}={fields[name]!r} is none of {', '.join(_DTYPES)}."
      )
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
  softcap = None
  if family in ("gemma2", "gemma3_text") and not is_nested(hf):
    # The head of a model with a vision tower does not read the field.
    softcap = hf_fields.softcap(text, "final_logit_softcapping", name)
  try:
    return ModelConfig(
      **hf_fields.shapes(text, name),
      **hf_fields.switches(text, family, name),
      final_softcap=softcap,
      tied_head=hf_fields.flag(hf, "tie_word_embeddings", name),
      **hf_fields.windows(text, family, name),
      **hf_fields.rotary(text, name),
    )
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"{name} cannot be used: {error!r}.") from error
