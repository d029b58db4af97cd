"""Writes merged models as directories that `transformers` loads."""

import dataclasses
import os
from pathlib import Path

from perl_jax import files
from perl_jax import params as params_lib
from perl_jax.interop import hf_config, hf_names, hf_weights, score
from perl_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Stops:
  """Token ids for `generation_config.json`.

  Attributes:
    stop_ids: Tokens that end a response.
    bos_id: Token that starts a prompt, or None.
    pad_id: A token for padding.
  """

  stop_ids: tuple[int, ...]
  bos_id: int | None
  pad_id: int


def save_model(
  directory: str | os.PathLike,
  config: ModelConfig,
  base: params_lib.Params,
  stops: Stops,
  *,
  dtype: str,
  shard_bytes: int,
  head: params_lib.Params | None = None,
) -> None:
  """Writes weights, config.json and generation_config.json.

  Args:
    directory: Existing directory for the files.
    config: Shapes and switches of the model.
    base: Parameters of the backbone, adapters merged into it.
    stops: Token ids.
    dtype: Dtype of the weights, "float32" or "bfloat16".
    shard_bytes: Largest number of bytes in a file.
    head: Scalar head of a reward model (`...ForSequenceClassification`), or
      None for a language model.

  Raises:
    ValueError: No architecture of `transformers` can express this model.
  """
  directory = Path(directory)
  extra = {}
  if head is not None:
    extra[hf_names.SCORE] = score.score_weight(head)
  settings = hf_config.hf_config(config, reward=head is not None)
  settings.dtype = dtype
  settings.bos_token_id = stops.bos_id
  settings.eos_token_id = stops.stop_ids[0]
  settings.pad_token_id = stops.pad_id
  hf_weights.save_base(
    directory,
    config,
    base,
    dtype=dtype,
    shard_bytes=shard_bytes,
    extra=extra,
    head=head is None,
  )
  files.write_json(directory / "config.json", settings.to_dict())
  generation = {
    "bos_token_id": stops.bos_id,
    "eos_token_id": list(stops.stop_ids),
    "pad_token_id": stops.pad_id,
  }
  if head is None:
    files.write_json(directory / "generation_config.json", generation)
