"""A Hugging Face checkpoint directory as a whole: config, base and head."""

import dataclasses
import json
import os
from pathlib import Path

from jax.sharding import Mesh

from perl_jax import roles
from perl_jax.interop import hf_config, hf_names, hf_weights, score
from perl_jax.interop.storage import Storage
from perl_jax.models.lora import LoraSpec


def is_checkpoint(directory: str | os.PathLike) -> bool:
  """Whether a directory looks like a checkpoint of `transformers`."""
  path = Path(directory) / "config.json"
  try:
    settings = json.loads(path.read_text())
  except (OSError, ValueError):
    return False
  return isinstance(settings, dict) and "model_type" in settings


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
  hf = hf_config.load_hf_config(directory)
  config = hf_config.model_config(hf, str(Path(directory) / "config.json"))
  checkpoint = hf_weights.Checkpoint(directory)
  architectures = getattr(hf, "architectures", None) or []
  head = None
  if hf_names.SCORE in checkpoint.shapes or any(
    name.endswith(hf_config.SEQ_CLS) for name in architectures
  ):
    weight = None
    if hf_names.SCORE in checkpoint.shapes:
      weight = checkpoint.read(hf_names.SCORE, (slice(None), slice(None)))
    where = f"{checkpoint.directory}: {hf_names.SCORE}"
    head = score.score_head(weight, config, where)
    # It has no head for tokens, whatever config.json says.
    config = dataclasses.replace(config, tied_head=True)
  base = hf_weights.load_base(checkpoint, config, mesh=mesh, storage=storage)
  return roles.Role(roles.Backbone(config, LoraSpec()), head or {}, base)
