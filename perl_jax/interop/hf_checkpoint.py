"""A Hugging Face checkpoint directory as a whole: config, base and head."""

import dataclasses
import os
from pathlib import Path

from jax.sharding import Mesh

from perl_jax import json_text, roles
from perl_jax.interop import (
  hf_config,
  hf_files,
  hf_names,
  hf_scores,
  hf_weights,
  score,
)
from perl_jax.interop.storage import Storage
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec


def is_checkpoint(directory: str | os.PathLike) -> bool:
  """Whether a directory looks like a checkpoint of `transformers`.

  One with a config.json that is broken does: `load` says what is wrong.
  """
  path = Path(directory) / "config.json"
  try:
    settings = json_text.parse(path.read_bytes())
  except OSError:
    return False
  except ValueError:
    return True
  names = ("model_type", "architectures")
  return isinstance(settings, dict) and any(name in settings for name in names)


def takes_nested(directory: str | os.PathLike, *, reward: bool) -> bool:
  """Whether an adapter for a checkpoint names its layers within a larger model.

  Args:
    directory: Directory of the checkpoint.
    reward: Whether the adapter is that of a reward model.

  Raises:
    ValueError: No class of `transformers` puts a score on the larger model.
  """
  hf = hf_config.load_hf_config(directory)
  nested = hf_config.is_nested(hf)
  if nested and reward and hf.model_type not in hf_config.NESTED_SCORED:
    raise ValueError(
      f"{directory} has model_type={hf.model_type!r}, for which transformers"
      " has no class with a score, so that nobody could load the adapter of a"
      " reward model on it. Set config.format to 'merged', which writes the"
      " language model by itself, with the score."
    )
  return nested


def load(
  directory: str | os.PathLike, *, mesh: Mesh, storage: Storage
) -> roles.Role:
  """Reads a checkpoint as a role without an adapter.

  `frozen` is the base, `trainable` the scalar head of a reward model
  (`...ForSequenceClassification` with one label), else empty.

  Args:
    directory: Directory that `save_pretrained` wrote.
    mesh: Mesh for the base.
    storage: Converts the base to the dtype it is kept in.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: The architecture, a field or the weights cannot be used.
  """
  config, checkpoint, is_reward = _describe(directory)
  head = None
  if is_reward:
    names = (*checkpoint.shapes, *checkpoint.others)
    hf_scores.check_tensors(names, checkpoint.directory)
    weight = None
    if hf_names.SCORE in checkpoint.shapes:
      whole = (slice(None),) * len(checkpoint.shapes[hf_names.SCORE])
      weight = checkpoint.read(hf_names.SCORE, whole)
    where = f"{checkpoint.directory}: {hf_names.SCORE}"
    head = score.score_head(weight, config, where)
  base = hf_weights.load_base(checkpoint, config, mesh=mesh, storage=storage)
  return roles.Role(roles.Backbone(config, LoraSpec()), head or {}, base)


def pad_id(directory: str | os.PathLike) -> int | None:
  """The pad token of config.json, at which a reward model never scores.

  None if there is none, which some write as -1.
  """
  hf = hf_config.load_hf_config(directory)
  id_ = hf.get_text_config().pad_token_id
  return None if id_ is None or id_ < 0 else id_


def heads(directory: str | os.PathLike) -> list[str]:
  """Names of tensors that neither a language model nor a reward model has.

  Such as the value head that TRL puts beside a policy.
  """
  _, checkpoint, _ = _describe(directory)
  return hf_scores.heads((*checkpoint.shapes, *checkpoint.others))


def model_config(directory: str | os.PathLike) -> ModelConfig:
  """The model of a checkpoint, from config.json and the names of its tensors.

  If there are no weights, from config.json alone.

  Raises:
    FileNotFoundError: There is no config.json, or a shard is missing.
    ValueError: The architecture or a field cannot be used.
  """
  try:
    return _describe(directory)[0]
  except hf_files.NoWeightsError:
    return hf_config.model_config(
      hf_config.load_hf_config(directory), str(Path(directory) / "config.json")
    )


def _describe(
  directory: str | os.PathLike,
) -> tuple[ModelConfig, hf_files.Checkpoint, bool]:
  """(model, tensors, whether it is a reward model)."""
  hf = hf_config.load_hf_config(directory)
  config = hf_config.model_config(hf, str(Path(directory) / "config.json"))
  checkpoint = hf_files.Checkpoint(
    directory,
    file=getattr(hf, "transformers_weights", None),
    nested=hf_config.is_nested(hf),
  )
  architectures = getattr(hf, "architectures", None) or []
  if hf_scores.is_reward(checkpoint.shapes, architectures):
    path = checkpoint.directory / "config.json"
    known = type(hf)().to_dict()
    hf_scores.check_config(json_text.read_object(path), known, path)
    # It has no head for tokens, whatever config.json says.
    return dataclasses.replace(config, tied_head=True), checkpoint, True
  return hf_weights.with_its_head(checkpoint, config), checkpoint, False
