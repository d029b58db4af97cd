"""LoRA adapters as PEFT directories, in and out.

A directory holds `adapter_config.json` and `adapter_model.safetensors`. PEFT
keeps A as [R, in] and B as [out, R], a pair for each layer; ours are [in, R]
and [R, out] with a leading layer axis. The scalar head of a reward model is the
module `score` of `AutoModelForSequenceClassification`.

Reference: huggingface/peft, `LoraConfig` and `get_peft_model_state_dict`.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from absl import logging

from perl_jax import disk, files, roles
from perl_jax import params as params_lib
from perl_jax.interop import (
  hf_files,
  hf_names,
  peft_config,
  peft_names,
  score,
)
from perl_jax.interop import leaves as leaves_lib
from perl_jax.interop.peft_names import (
  LORA,
  PREFIX,
  SCORE,
  UNTRAINED_SCORE,
  VALUE_HEAD,
  VISION,
)
from perl_jax.models import lora as lora_lib
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

CONFIG = peft_config.CONFIG
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_BY_MODULE = {v: k for k, v in hf_names.PROJECTIONS.items()}
_OF_VISION = r"(.*\.)?(vision_tower|multi_modal_projector)\..*"
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def save_adapter(
  directory: str | os.PathLike,
  config: ModelConfig,
  spec: LoraSpec,
  adapter: params_lib.Params,
  *,
  base: str,
  head: params_lib.Params | None = None,
  nested: bool = False,
) -> None:
  """Writes an adapter that `peft` loads.

  Args:
    directory: Existing directory for the two files.
    config: Shapes and switches of the model.
    spec: Shape of the adapter.
    adapter: LoRA leaves.
    base: Path or name of the base, for `AutoPeftModel`.
    head: Scalar head of a reward model (SEQ_CLS), or None.
    nested: Whether the language model is a part of the base, which sees images
      too. Its other parts get no adapter.

  Raises:
    ValueError: The head is not one linear layer without a bias.
  """
  root = hf_names.NESTED_ROOT if nested else hf_names.ROOT
  tensors: dict[str, np.ndarray] = {}
  stems = set()
  for path, leaf in params_lib.flatten(adapter).items():
    stem, name = path.removeprefix("layers/").rsplit("/", 1)
    stems.add(stem)
    letter = {"lora_a": "A", "lora_b": "B"}[name]
    for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
      module = f"{root}layers.{layer}.{hf_names.PROJECTIONS[stem]}"
      tensors[f"{PREFIX}{module}.lora_{letter}.weight"] = np.ascontiguousarray(
        matrix.T
      )
  if head is not None:
    tensors[f"{PREFIX}{hf_names.SCORE}"] = score.score_weight(head)
  settings = {
    "peft_type": "LORA",
    "task_type": (
      peft_config.CAUSAL_LM if head is None else peft_config.SEQ_CLS
    ),
    "base_model_name_or_path": base,
    "r": spec.rank,
    "lora_alpha": spec.alpha,
    "lora_dropout": spec.dropout,
    "use_rslora": spec.rslora,
    "target_modules": sorted(
      hf_names.PROJECTIONS[stem].rsplit(".", 1)[-1] for stem in stems
    ),
    "exclude_modules": _OF_VISION if nested else None,
    "modules_to_save": None if head is None else ["score"],
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "inference_mode": True,
    "rank_pattern": {},
    "alpha_pattern": {},
  }
  needed = sum(tensor.nbytes for tensor in tensors.values())
  with disk.writing(WEIGHTS, directory, needed):
    safetensors.numpy.save_file(
      tensors, Path(directory) / WEIGHTS, metadata={"format": "pt"}
    )
  files.write_json(Path(directory) / CONFIG, settings)


def is_adapter(directory: str | os.PathLike) -> bool:
  """Whether a directory looks like a PEFT adapter."""
  return (Path(directory) / CONFIG).is_file()


def base_of(directory: str | os.PathLike) -> str:
  """Path or name of the base that an adapter says it was trained on, or ""."""
  return peft_config.read(directory).base


def load_adapter(
  directory: str | os.PathLike, config: ModelConfig
) -> roles.Role:
  """Reads a PEFT LoRA adapter for a backbone, as a role without its base.

  `trainable` holds the LoRA leaves in float32, and the scalar head of a reward
  model; `frozen` is empty.

  Modules may differ in rank and alpha, and layers may be without an adapter: a
  smaller rank is padded with zeros, and the ratio of the scales is multiplied
  into B.

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
        f" {CONFIG} and {WEIGHTS}." + _pickle_hint(directory)
      )
  settings = peft_config.read(directory)
  try:
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
  except (safetensors.SafetensorError, KeyError) as error:
    hf_files.require_no_pointer(directory / WEIGHTS)
    raise ValueError(
      f"{directory / WEIGHTS} is truncated or no safetensors file: {error}."
    ) from error
  except AttributeError as error:  # a dtype that NumPy does not have
    raise ValueError(
      f"{directory / WEIGHTS} has tensors of a dtype that is none of"
      f" {', '.join(_FLOATS)} ({error}). Save the adapter in one of them."
    ) from error
  return _assemble(directory / WEIGHTS, settings, tensors, config)


def _pickle_hint(directory: Path) -> str:
  if not (directory / PICKLE).is_file():
    return ""
  return (
    f" {PICKLE} is a pickle, which can run code and is not read. Convert it"
    " where you trust it: safetensors.torch.save_file(torch.load("
    f"{PICKLE!r}, weights_only=True), {WEIGHTS!r})."
  )


def _assemble(path, settings, tensors, config) -> roles.Role:
  """The role that the tensors of a file make; see `load_adapter`."""
  pairs: dict[str, dict[int, dict[str, np.ndarray]]] = {}
  roots, heads, unknown, vision = set(), {}, [], []
  for name, tensor in tensors.items():
    found = LORA.fullmatch(name)
    if found and found[3] in _BY_MODULE:
      roots.add(found[1])
      layers = pairs.setdefault(_BY_MODULE[found[3]], {})
      pair = layers.setdefault(int(found[2]), {})
      if found[4] in pair:
        raise ValueError(f"{path} has {name} under two names; keep one.")
      pair[found[4]] = _checked(path, name, tensor)
    elif SCORE.fullmatch(name) or UNTRAINED_SCORE.fullmatch(name):
      heads[name] = tensor
    elif VISION.match(name):
      vision.append(name)
    elif VALUE_HEAD.match(name) and not settings.is_reward:
      logging.warning(
        "%s: %s is left out: it is of a value model beside the policy.", path,
        name,
      )  # fmt: skip
    else:
      unknown.append(name)
  if unknown:
    raise ValueError(
      f"{path} has {len(unknown)} tensors that are no LoRA matrix of a"
      f" projection: {sorted(unknown)[:4]}."
      + peft_names.way_out({n: tensors[n].shape for n in unknown}, config)
    )
  if len(roots) > 1:
    raise ValueError(
      f"{path} names the layers in more than one way: {sorted(roots)}. It holds"
      " the adapters of two models; keep one."
    )
  if not pairs:
    raise ValueError(f"{path} has no LoRA matrices of projections.")
  if vision:
    logging.info(
      "%s: %d tensors of the vision tower are left out; they do not act on"
      " text.", path, len(vision),
    )  # fmt: skip
  head = _head(path, settings, heads, config)
  modules = _modules(path, settings, pairs, roots.pop(), config)
  spec = _spec(settings, pairs, modules)
  shapes = leaves_lib.base_shapes(config)
  leaves = {}
  for stem, layers in pairs.items():
    kernel = shapes[f"layers/{stem}/kernel"]
    a, b = _stack(path, settings, spec, layers, modules[stem], kernel)
    leaves[f"layers/{stem}/lora_a"], leaves[f"layers/{stem}/lora_b"] = a, b
  trainable = params_lib.unflatten(leaves) | head
  return roles.Role(roles.Backbone(config, spec), trainable, {})


def _checked(path, name, tensor) -> np.ndarray:
  """A LoRA matrix in float32."""
  if tensor.dtype.name not in _FLOATS:
    raise ValueError(
      f"{path}: {name} has dtype {tensor.dtype.name}, none of"
      f" {', '.join(_FLOATS)}. Save the adapter in one of them."
    )
  matrix = tensor.astype(np.float32)
  if matrix.ndim != 2 or not np.isfinite(matrix).all():
    raise ValueError(
      f"{path}: {name} of shape {matrix.shape} is no matrix of finite numbers."
      " The adapter was saved in parts, or its training diverged."
    )
  return matrix


def _head(path, settings, heads, config) -> Mapping[str, params_lib.Params]:
  """{"head": ...} of a reward model, or {}."""
  trained = {k: v for k, v in heads.items() if SCORE.fullmatch(k)}
  if settings.is_reward and not trained:
    raise ValueError(
      f"{path} has no score.weight, and {settings.path} says"
      f" task_type={peft_config.SEQ_CLS!r}. Train with"
      ' modules_to_save=["score"], and save the adapter from all shards.'
    )
  if len(trained) > 1 or (heads and not trained):
    raise ValueError(
      f"{path} should have one trained score.weight: {sorted(heads)}."
    )
  for name, tensor in trained.items():
    return dict(score.score_head(tensor, config, f"{path}: {name}"))
  return {}


def _modules(path, settings, pairs, root, config) -> dict[str, dict[int, str]]:
  """Names of the adapted modules as PEFT has them, by stem and layer.

  Raises:
    ValueError: The file holds other modules than the config names. PEFT would
      drop those in excess, and start those that are missing anew.
  """
  layers = range(config.num_layers)
  named = {
    stem: {
      i: name
      for i in layers
      if settings.targets(name := f"{root}layers.{i}.{module}")
    }
    for stem, module in hf_names.PROJECTIONS.items()
  }
  for stem, module in hf_names.PROJECTIONS.items():
    found = pairs.get(stem, {})
    whole = all(len(pair) == 2 for pair in found.values())
    if sorted(found) != sorted(named[stem]) or not whole:
      raise ValueError(
        f"{path}: {module} has adapters in layers {sorted(found)}, and each"
        f" needs lora_A and lora_B. {settings.path} asks for layers"
        f" {sorted(named[stem])} ({settings.selection()}), the base has layers"
        f" 0 to {config.num_layers - 1}. The file is incomplete, its config is"
        " not its own, or the adapter is for another base."
      )
  return named


def _spec(settings, pairs, modules) -> LoraSpec:
  stems = sorted(pairs)
  if stems == sorted(lora_lib.ATTENTION):
    targets = "attention"
  elif stems == sorted(lora_lib.PROJECTIONS):
    targets = "all"
  else:
    targets = "|".join(stems)
  names = [name for stem in stems for name in modules[stem].values()]
  return LoraSpec(
    rank=max(map(settings.rank_of, names)),
    alpha=settings.alpha,
    dropout=settings.dropout,
    rslora=settings.rslora,
    targets=targets,
  )


def _stack(path, settings, spec, layers, modules, kernel):
  """(A `[L, in, R]`, B `[L, R, out]`) for a kernel of shape `[L, in, out]`."""
  num_layers, width_in, width_out = kernel
  a = np.zeros((num_layers, width_in, spec.rank), np.float32)
  b = np.zeros((num_layers, spec.rank, width_out), np.float32)
  for layer, name in modules.items():
    pair, rank = layers[layer], settings.rank_of(name)
    shapes = pair["A"].shape, pair["B"].shape
    if shapes != ((rank, width_in), (width_out, rank)):
      raise ValueError(
        f"{path}: lora_A and lora_B of {name} have shapes {shapes[0]} and"
        f" {shapes[1]}; the base and {settings.path} (r, rank_pattern) ask for"
        f" ({rank}, {width_in}) and ({width_out}, {rank}). The adapter is for"
        " another base, or its config is not its own."
      )
    own = dataclasses.replace(spec, rank=rank, alpha=settings.alpha_of(name))
    factor = np.float32(own.scale / spec.scale)
    a[layer, :, :rank] = pair["A"].T
    b[layer, :rank] = pair["B"].T if factor == 1 else pair["B"].T * factor
  return a, b
