"""`adapter_config.json` of a PEFT adapter: what its fields mean here.

Each field is in one of three tables: honoured, harmless (it changes no output
of the model that is loaded), or refused by name unless it has its neutral
value. The reference is what `PeftModel.from_pretrained` does with the field.

Reference: huggingface/peft 0.21, `LoraConfig`, `check_target_module_exists` and
`get_pattern_key`.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perl_jax import json_text
from perl_jax.interop import values

CONFIG = "adapter_config.json"
CAUSAL_LM = "CAUSAL_LM"
SEQ_CLS = "SEQ_CLS"

HONOURED = (
  "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha",
  "lora_dropout", "use_rslora", "target_modules", "exclude_modules",
  "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
  "modules_to_save", "init_lora_weights",
)  # fmt: skip

HARMLESS = (
  # Where the adapter came from.
  "auto_mapping", "peft_version", "revision", "inference_mode",
  # PEFT sets it to False for `nn.Linear`, which all projections are.
  "fan_in_fan_out",
  # Settings of one `init_lora_weights`, which decides.
  "loftq_config", "eva_config", "corda_config", "lora_ga_config",
  # Settings of `use_qalora` and `megatron_config`, which decide.
  "qalora_group_size", "megatron_core",
  # How the model is run, and tied embeddings, which are refused as tensors.
  "runtime_config", "ensure_weight_tying",
  # Of PEFT before 0.3: when to merge.
  "merge_weights",
)  # fmt: skip

MERGE = (
  " Merge the adapter with PEFT (merge_and_unload) and give the merged"
  " checkpoint as config.base."
)
# Kinds of adapters that are tokens or keys of their own, before the prompt.
_PROMPTS = (
  "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
  "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
)  # fmt: skip
_LEARNED_PROMPT = (
  " It is a learned prompt and changes no weights, so that it cannot be merged"
  " into a checkpoint either: train a LoRA adapter."
)
_CANNOT = (
  " No plain LoRA adapter equals it, and PEFT cannot write it as a merged"
  " checkpoint either."
)
_NOT_HERE = (
  " If it does not change what the adapter computes, take the field out of the"
  " file. Otherwise merge the adapter with the PEFT that wrote it"
  " (merge_and_unload) and give the merged checkpoint as config.base."
)
# Field -> way out. The neutral values are None, False, nothing and "none".
REFUSED = {
  "bias": MERGE,
  "use_dora": MERGE,
  "lora_bias": MERGE,
  "trainable_token_indices": MERGE,
  "target_parameters": MERGE,
  "velora_config": MERGE,
  "monteclora_config": MERGE,
  "kasa_config": MERGE,
  "use_bdlora": MERGE,
  "use_qalora": MERGE,
  "layer_replication": _CANNOT,
  "alora_invocation_tokens": _CANNOT,
  "arrow_config": _CANNOT,
  "megatron_config": _CANNOT,
}

# Starts after which PEFT loads A and B onto the base as it is.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_CHANGED = " PEFT changes the base when it loads such an adapter." + MERGE
_TRAINED_ON = (
  " Its start was taken off the base before training. If config.base is the"
  ' base after that, set "init_lora_weights": true in the file. If not, let the'
  " training script write the adapter with PEFT's save_pretrained(...,"
  " path_initial_model_for_weight_conversion=...)."
)
# Other starts, by the beginning of their name; the first that fits. PEFT draws
# the start of "pissa_niter_" anew, and cannot make the others again.
OTHER_STARTS = {
  "pissa_niter_": _TRAINED_ON,
  "pissa": _CHANGED,
  "olora": _CHANGED,
  "loftq": " PEFT quantises the base, with bitsandbytes, when it loads such an"
  " adapter." + MERGE,
  "corda": _TRAINED_ON,
  "lora_ga": _TRAINED_ON,
}

# What PEFT takes for every supported family if `target_modules` is null.
_DEFAULT_TARGETS = ("q_proj", "v_proj")
_HEADS = ("score", "classifier")
# Regular expressions that a key of a pattern and of `layers_pattern` become
# parts of; the group of the latter is the layer.
_ENDING = r"(.*\.)?({})$"
_LAYER = r"(?:.*?\.)?{}\.(\d+)\."
_ANY_LAYER = r".*?\.[^.]*\.(\d+)\."


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """The fields of an adapter_config.json, checked.

  Attributes:
    path: The file.
    fields: Fields of the file; only those in `HONOURED` matter.
  """

  path: Path
  fields: Mapping[str, Any]

  @property
  def base(self) -> str:
    """Path or name of the base that the adapter was trained on, or ""."""
    return self.fields.get("base_model_name_or_path") or ""

  @property
  def is_reward(self) -> bool:
    """Whether it is the adapter of a sequence classifier."""
    return self.fields.get("task_type") == SEQ_CLS

  @property
  def alpha(self) -> float:
    """`lora_alpha`, for modules that no pattern names."""
    return float(self.fields.get("lora_alpha", 8))

  @property
  def dropout(self) -> float:
    """`lora_dropout`."""
    return float(self.fields.get("lora_dropout") or 0.0)

  @property
  def rslora(self) -> bool:
    """Whether the scale is alpha / sqrt(R)."""
    return bool(self.fields.get("use_rslora"))

  def rank_of(self, module: str) -> int:
    """Rank of the module of this name, such as "model.layers.0.mlp.up_proj"."""
    return self._of_pattern("rank_pattern", module, self.fields.get("r", 8))

  def alpha_of(self, module: str) -> float:
    """Numerator of the module's scale."""
    return float(self._of_pattern("alpha_pattern", module, self.alpha))

  def _of_pattern(self, field: str, module: str, default: Any) -> Any:
    for key, value in (self.fields.get(field) or {}).items():
      if re.match(_ENDING.format(key), module):
        return value
    return default

  def targets(self, module: str) -> bool:
    """Whether PEFT puts an adapter on the linear layer of this name."""
    excluded = self.fields.get("exclude_modules")
    if excluded and _named(excluded, module):
      return False
    wanted = self.fields.get("target_modules")
    if isinstance(wanted, str):
      return wanted.lower() == "all-linear" or _named(wanted, module)
    wanted = _DEFAULT_TARGETS if wanted is None else wanted
    return module in wanted or (
      _named(wanted, module) and self._transforms(module)
    )

  def _transforms(self, module: str) -> bool:
    """Whether the module's layer is among `layers_to_transform`."""
    layers = self.fields.get("layers_to_transform")
    if layers is None or layers == []:
      return True
    patterns = self.fields.get("layers_pattern") or ()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for start in [_LAYER.format(p) for p in patterns] or [_ANY_LAYER]:
      found = re.match(start, module)
      if found:
        listed = [layers] if isinstance(layers, int) else layers
        return int(found[1]) in listed
    return False

  def selection(self) -> str:
    """The fields that select modules, for error messages."""
    shown = ["target_modules"] + [
      name
      for name in ("exclude_modules", "layers_to_transform", "layers_pattern")
      if self.fields.get(name)
    ]
    return ", ".join(f"{name}={self.fields.get(name)!r}" for name in shown)


def read(directory: str | os.PathLike) -> AdapterConfig:
  """Reads and checks the adapter_config.json of a directory.

  Raises:
    FileNotFoundError: There is none.
    ValueError: It is broken, or says what is not supported; names the file,
      the field, its value and the way out.
  """
  path = Path(directory) / CONFIG
  fields = json_text.read_object(path)
  if "peft_type" not in fields and "fine_tune_type" in fields:
    raise ValueError(
      f"{path}: fine_tune_type={fields['fine_tune_type']!r} is of an adapter of"
      " MLX-LM, which neither this nor PEFT reads. Merge it: `mlx_lm.fuse"
      f" --model BASE --adapter-path {directory} --save-path DIR`, with"
      " --dequantize if BASE is quantised, and give DIR as config.base."
    )
  if fields.get("peft_type") != "LORA":
    kind = fields.get("peft_type")
    raise ValueError(
      f"{path}: peft_type={kind!r}; only LORA is supported."
      + (_LEARNED_PROMPT if kind in _PROMPTS else MERGE)
    )
  _require_supported(path, fields)
  _require_types(path, fields)
  return AdapterConfig(path, fields)


def _require_supported(path: Path, fields: Mapping[str, Any]) -> None:
  """Refuses what makes an adapter more than A and B."""
  used = {
    field: REFUSED.get(field, _NOT_HERE)
    for field, value in fields.items()
    if field not in HONOURED + HARMLESS and not _is_neutral(value)
  }
  saved = fields.get("modules_to_save") or []
  if not isinstance(saved, list) or any(s not in _HEADS for s in saved):
    used["modules_to_save"] = MERGE
  if fields.get("task_type") not in (
    None, CAUSAL_LM, SEQ_CLS, "FEATURE_EXTRACTION"
  ):  # fmt: skip
    used["task_type"] = f" A policy is {CAUSAL_LM}, a reward model {SEQ_CLS}."
  if used:
    shown = ", ".join(f"{field}={fields[field]!r}" for field in used)
    ways = " ".join(dict.fromkeys(way.strip() for way in used.values()))
    raise ValueError(f"{path}: {shown} is not supported. {ways}")
  start = fields.get("init_lora_weights", True)
  name = start.lower() if isinstance(start, str) else start
  # An isinstance too, as 1 == True.
  if name in PLAIN_STARTS and (name is None or isinstance(name, bool | str)):
    return
  ways = [w for k, w in OTHER_STARTS.items() if str(name).startswith(k)]
  raise ValueError(
    f"{path}: init_lora_weights={start!r} is not supported: base + A B is not"
    " the model that was trained." + (ways or [_NOT_HERE])[0]
  )


def _is_neutral(value: Any) -> bool:
  return not value or value == "none"


def _require_types(path: Path, fields: Mapping[str, Any]) -> None:
  """Checks the types and ranges of the fields that are honoured."""

  def require(field, fine, what):
    value = fields.get(field)
    if field in fields and not fine(value):
      raise ValueError(f"{path}: {field}={value!r} must be {what}.")

  require("r", values.is_count, "a whole number of at least 1")
  require("lora_alpha", values.is_positive, "a positive number")
  require(
    "lora_dropout",
    lambda x: x is None or (values.is_number(x) and 0 <= x < 1),
    "a number in [0, 1)",
  )
  require(
    "use_rslora", lambda x: x is None or isinstance(x, bool), "true or false"
  )
  require(
    "base_model_name_or_path",
    lambda x: x is None or (isinstance(x, str) and "\0" not in x),
    "a path, a name or null",
  )
  for field, fine, what in (
    ("rank_pattern", values.is_count, "ranks of at least 1"),
    ("alpha_pattern", values.is_positive, "positive numbers"),
  ):
    require(
      field,
      lambda x, fine=fine: (
        not x
        or (
          isinstance(x, dict)
          and all(map(fine, x.values()))
          and all(values.is_pattern(_ENDING.format(key)) for key in x)
        )
      ),
      f"a mapping from regular expressions to {what}",
    )
  for field in ("target_modules", "exclude_modules"):
    require(
      field,
      lambda x: x is None or values.is_names(x),
      "a regular expression, a list of names or null",
    )
  require(
    "layers_pattern",
    lambda x: (
      not x or _is_layer(x) or (isinstance(x, list) and all(map(_is_layer, x)))
    ),
    "a name or a list of names, regular expressions without groups",
  )
  require(
    "layers_to_transform",
    lambda x: (
      x is None
      or values.is_index(x)
      or (isinstance(x, list) and all(map(values.is_index, x)))
    ),
    "a layer's number, a list of them or null",
  )
  if fields.get("layers_to_transform") is not None and isinstance(
    fields.get("target_modules"), str
  ):
    raise ValueError(
      f"{path}: target_modules={fields['target_modules']!r} is a regular"
      " expression, with which layers_to_transform="
      f"{fields['layers_to_transform']!r} is not allowed. Write the layers"
      " into the expression."
    )


def _named(names: Any, module: str) -> bool:
  """Whether a module is named by a regular expression or a list of endings."""
  if isinstance(names, str):
    return re.fullmatch(names, module) is not None
  return any(module == name or module.endswith(f".{name}") for name in names)


def _is_layer(value: Any) -> bool:
  return isinstance(value, str) and values.is_pattern(_LAYER.format(value), 1)
