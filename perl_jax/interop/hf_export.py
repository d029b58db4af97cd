"""Writes merged models as directories that `transformers` loads."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perl_jax import files, json_text
from perl_jax import params as params_lib
from perl_jax.interop import hf_config_out, hf_names, hf_weights, score
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
  like: str | os.PathLike | None = None,
) -> None:
  """Writes weights, config.json and generation_config.json.

  What the released config.json and generation_config.json of the same model
  say beside its arithmetic and its stop tokens is kept.

  Args:
    directory: Existing directory for the files.
    config: Shapes and switches of the model.
    base: Parameters of the backbone, adapters merged into it.
    stops: Token ids.
    dtype: Dtype of the weights, "float32" or "bfloat16".
    shard_bytes: Largest number of bytes in a file.
    head: Scalar head of a reward model (`...ForSequenceClassification`), or
      None for a language model.
    like: Directory with the files that the model came with, or None.

  Raises:
    ValueError: No architecture of `transformers` can express this model.
  """
  directory = Path(directory)
  extra = {}
  if head is not None:
    extra[hf_names.SCORE] = score.score_weight(head)
  known = {} if like is None else hf_config_out.released(like, config)
  settings = hf_config_out.settings(
    config,
    reward=head is not None,
    dtype=dtype,
    ids=_ids(stops, known),
    like=known,
  )
  hf_weights.save_base(
    directory,
    config,
    base,
    dtype=dtype,
    shard_bytes=shard_bytes,
    extra=extra,
    head=head is None,
  )
  files.write_json(directory / "config.json", settings)
  if head is None:
    generation = _generation(like) if known else {}
    generation |= {name: settings[name] for name in _ids(stops, known)}
    generation["eos_token_id"] = list(stops.stop_ids)
    files.write_json(directory / "generation_config.json", generation)


def _ids(stops: Stops, known: Mapping[str, Any]) -> dict[str, Any]:
  """Token ids for config.json; those of the released one where they agree."""
  eos = known.get("eos_token_id")
  every = eos if isinstance(eos, list) else [eos]
  bos_id = stops.bos_id
  if bos_id is None:  # no text begins with it, but others may know it
    bos_id = known.get("bos_token_id")
  return {
    "bos_token_id": bos_id,
    "eos_token_id": eos
    if set(every) <= {*stops.stop_ids}
    else stops.stop_ids[0],
    "pad_token_id": stops.pad_id,
  }


def _generation(directory: str | os.PathLike) -> dict[str, Any]:
  """Fields of a released generation_config.json, {} if there is none."""
  try:
    return json_text.read_object(Path(directory) / "generation_config.json")
  except (OSError, ValueError):
    return {}
