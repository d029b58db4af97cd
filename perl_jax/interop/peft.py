"""LoRA adapters as PEFT directories, in and out.

A directory holds `adapter_config.json` and `adapter_model.safetensors`. PEFT
keeps A as [R, in] and B as [out, R], a pair for each layer; ours are [in, R]
and [R, out] with a leading layer axis. The scalar head of a reward model is the
module `score` of `AutoModelForSequenceClassification`.

Reference: huggingface/peft, `LoraConfig` and `get_peft_model_state_dict`.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from perl_jax import files, roles
from perl_jax import params as params_lib
from perl_jax.interop import hf_names, hf_weights, score
from perl_jax.models import lora as lora_lib
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CAUSAL_LM = "CAUSAL_LM"
SEQ_CLS = "SEQ_CLS"
_PREFIX = "base_model.model."
_BY_MODULE = {v: k for k, v in hf_names.PROJECTIONS.items()}
_LORA = re.compile(
  r"(?:base_model\.model\.)?model\.layers\.(\d+)\.([\w.]+)"
  r"\.lora_(A|B)(?:\.default)?\.weight"
)
_SCORE = re.compile(
  r"(?:base_model\.model\.)?score(?:\.modules_to_save\.default)?\.weight"
)

# Kinds of adapter that are LoRA by name but not y = x W + scale x A B.
_REFUSED = (
  "use_dora", "lora_bias", "layers_to_transform", "layer_replication",
  "megatron_config", "trainable_token_indices", "target_parameters",
  "alora_invocation_tokens", "use_qalora", "fan_in_fan_out",
)  # fmt: skip


def save_adapter(
  directory: str | os.PathLike,
  config: ModelConfig,
  spec: LoraSpec,
  adapter: params_lib.Params,
  *,
  base: str,
  head: params_lib.Params | None = None,
) -> None:
  """Writes an adapter that `peft` loads.

  Args:
    directory: Existing directory for the two files.
    config: Shapes and switches of the model.
    spec: Shape of the adapter.
    adapter: LoRA leaves.
    base: Path or name of the base, for `AutoPeftModel`.
    head: Scalar head of a reward model (SEQ_CLS), or None.

  Raises:
    ValueError: The head is not one linear layer without a bias.
  """
  tensors: dict[str, np.ndarray] = {}
  stems = set()
  for path, leaf in params_lib.flatten(adapter).items():
    stem, name = path.removeprefix("layers/").rsplit("/", 1)
    stems.add(stem)
    letter = {"lora_a": "A", "lora_b": "B"}[name]
    for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
      module = f"model.layers.{layer}.{hf_names.PROJECTIONS[stem]}"
      tensors[f"{_PREFIX}{module}.lora_{letter}.weight"] = np.ascontiguousarray(
        matrix.T
      )
  if head is not None:
    tensors[f"{_PREFIX}{hf_names.SCORE}"] = score.score_weight(head)
  settings = {
    "peft_type": "LORA",
    "task_type": CAUSAL_LM if head is None else SEQ_CLS,
    "base_model_name_or_path": base,
    "r": spec.rank,
    "lora_alpha": spec.alpha,
    "lora_dropout": spec.dropout,
    "use_rslora": spec.rslora,
    "target_modules": sorted(
      hf_names.PROJECTIONS[stem].rsplit(".", 1)[-1] for stem in stems
    ),
    "modules_to_save": None if head is None else ["score"],
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "inference_mode": True,
    "rank_pattern": {},
    "alpha_pattern": {},
  }
  safetensors.numpy.save_file(
    tensors, Path(directory) / WEIGHTS, metadata={"format": "pt"}
  )
  files.write_json(Path(directory) / CONFIG, settings)


def is_adapter(directory: str | os.PathLike) -> bool:
  """Whether a directory looks like a PEFT adapter."""
  return (Path(directory) / CONFIG).is_file()


def base_of(directory: str | os.PathLike) -> str:
  """Path or name of the base that an adapter says it was trained on."""
  settings = _read_config(Path(directory) / CONFIG)
  return str(settings.get("base_model_name_or_path") or "")


def load_adapter(
  directory: str | os.PathLike, config: ModelConfig
) -> roles.Role:
  """Reads a PEFT LoRA adapter for a backbone, as a role without its base.

  `trainable` holds the LoRA leaves in float32, and the scalar head of a reward
  model; `frozen` is empty.

  `rank_pattern` and `alpha_pattern` are supported: smaller ranks are padded
  with zeros, and the ratio of the scales is multiplied into B.

  Raises:
    FileNotFoundError: One of the two files is missing.
    ValueError: Not a LoRA adapter, of a kind that is not supported, or for
      another base; names the field or the tensors.
  """
  directory = Path(directory)
  for file in (CONFIG, WEIGHTS):
    if not (directory / file).is_file():
      raise FileNotFoundError(
        f"{directory / file} does not exist. A PEFT adapter directory holds"
        f" {CONFIG} and {WEIGHTS}."
      )
  settings = _read_config(directory / CONFIG)
  try:
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
  except (safetensors.SafetensorError, KeyError) as error:
    raise ValueError(
      f"{directory / WEIGHTS} is truncated or no safetensors file: {error}."
    ) from error
  return _assemble(directory, settings, tensors, config)


def _read_config(path: Path) -> dict[str, Any]:
  try:
    settings = dict(json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is no JSON object: {error}.") from error
  if settings.get("peft_type") != "LORA":
    raise ValueError(
      f"{path}: peft_type={settings.get('peft_type')!r}; only LORA is"
      " supported."
    )
  used = [field for field in _REFUSED if settings.get(field)]
  if settings.get("bias", "none") != "none":
    used.append("bias")
  more = set(settings.get("modules_to_save") or ()) - {"score", "classifier"}
  if more:
    used.append("modules_to_save")
  if used:
    values = ", ".join(f"{f}={settings[f]!r}" for f in used)
    raise ValueError(
      f"{path}: {values} is not supported. Merge the adapter with PEFT"
      " (merge_and_unload) and give the merged checkpoint as config.base."
    )
  return settings


def _assemble(directory, settings, tensors, config) -> roles.Role:
  pairs: dict[str, dict[int, dict[str, np.ndarray]]] = {}
  head, unknown = None, []
  for name, tensor in tensors.items():
    found = _LORA.fullmatch(name)
    if found and found[2] in _BY_MODULE:
      layers = pairs.setdefault(_BY_MODULE[found[2]], {})
      layers.setdefault(int(found[1]), {})[found[3]] = tensor.astype(np.float32)
    elif _SCORE.fullmatch(name):
      head = score.score_head(tensor, config, f"{directory / WEIGHTS}: {name}")
    else:
      unknown.append(name)
  if unknown:
    raise ValueError(
      f"{directory / WEIGHTS} has {len(unknown)} tensors that are no LoRA"
      f" matrix of a projection: {sorted(unknown)[:4]}. Merge the adapter with"
      " PEFT and give the merged checkpoint as config.base."
    )
  spec, shapes = _spec(settings, pairs), hf_weights.base_shapes(config)
  leaves = {}
  for stem, layers in pairs.items():
    kernel = shapes[f"layers/{stem}/kernel"]
    a, b = _stack(directory, settings, spec, stem, layers, kernel)
    leaves[f"layers/{stem}/lora_a"], leaves[f"layers/{stem}/lora_b"] = a, b
  if not leaves:
    raise ValueError(f"{directory / WEIGHTS} has no LoRA matrices.")
  trainable = params_lib.unflatten(leaves) | (head or {})
  return roles.Role(roles.Backbone(config, spec), trainable, {})


def _spec(settings, pairs: Mapping[str, Any]) -> LoraSpec:
  stems = sorted(pairs)
  if stems == sorted(lora_lib.ATTENTION):
    targets = "attention"
  elif stems == sorted(lora_lib.PROJECTIONS):
    targets = "all"
  else:
    targets = "|".join(stems)
  rank_pattern = settings.get("rank_pattern") or {}
  return LoraSpec(
    rank=max([settings["r"], *rank_pattern.values()]),
    alpha=float(settings["lora_alpha"]),
    dropout=float(settings.get("lora_dropout") or 0.0),
    rslora=bool(settings.get("use_rslora")),
    targets=targets,
  )


def _of_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
  """The value of the first key that ends the module's name, as PEFT has it."""
  for key, value in (pattern or {}).items():
    if re.match(rf"(.*\.)?({key})$", module):
      return value
  return default


def _stack(directory, settings, spec, stem, layers, kernel):
  """(A `[L, in, R]`, B `[L, R, out]`) for a kernel of shape `[L, in, out]`."""
  module = hf_names.PROJECTIONS[stem]
  num_layers, width_in, width_out = kernel
  expected = list(range(num_layers))
  if sorted(layers) != expected or any(len(p) != 2 for p in layers.values()):
    raise ValueError(
      f"{directory / WEIGHTS}: {module} has adapters in layers"
      f" {sorted(layers)}, the base has layers 0 to {num_layers - 1},"
      " and each needs lora_A and lora_B. The adapter is for another base."
    )
  a = np.zeros((num_layers, width_in, spec.rank), np.float32)
  b = np.zeros((num_layers, spec.rank, width_out), np.float32)
  for layer in expected:
    pair = layers[layer]
    rank = pair["A"].shape[0]
    shapes = pair["A"].shape, pair["B"].shape
    if shapes != ((rank, width_in), (width_out, rank)) or rank > spec.rank:
      raise ValueError(
        f"{directory / WEIGHTS}: lora_A and lora_B of layer {layer}, {module}"
        f" have shapes {shapes[0]} and {shapes[1]}; the base asks for"
        f" (r, {width_in}) and ({width_out}, r) with r <= {spec.rank}. The"
        " adapter is for another base."
      )
    name = f"model.layers.{layer}.{module}"
    alpha = _of_pattern(settings.get("alpha_pattern"), name, spec.alpha)
    own = dataclasses.replace(spec, rank=rank, alpha=float(alpha))
    factor = np.float32(own.scale / spec.scale)
    a[layer, :, :rank] = pair["A"].T
    b[layer, :rank] = pair["B"].T if factor == 1 else pair["B"].T * factor
  return a, b
