"""Changes that make a stage fit: each is planned, none is guessed."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from perl_jax import sharding
from perl_jax.models.config import ModelConfig
from perl_jax.tasks.settings import shared

# plan_stage(config, model, mesh).
Planner = Callable[[shared.Config, ModelConfig, Mesh], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A stage with some config fields changed.

  Attributes:
    change: The fields that were changed last, as command-line flags.
    config: Config of the stage with all changes so far.
    model: Shapes and switches of the transformer.
    mesh: A mesh of the same devices, perhaps with other sizes.
  """

  change: str
  config: shared.Config
  model: ModelConfig
  mesh: Mesh


def try_changes(
  config: shared.Config, model: ModelConfig, mesh: Mesh, plan: Planner
) -> list[dict[str, Any]]:
  """Plans changes, each on top of those before it, until the stage fits.

  They come in the order of their cost: more microbatches, rematerialisation,
  the base sharded over all devices, the base in int8, half the batch, a quarter
  of it.

  Returns:
    {"change", "peak_bytes", "fits", "seconds"} of each that was tried, the last
    one fitting unless none does.
  """
  tried = []
  for candidate in candidates(config, model, mesh):
    found = plan(candidate.config, candidate.model, candidate.mesh)
    tried.append(
      {"change": candidate.change}
      | {k: found[k] for k in ("peak_bytes", "fits", "seconds")}
    )
    if found["fits"]:
      break
  return tried


def candidates(
  config: shared.Config, model: ModelConfig, mesh: Mesh
) -> Iterator[Candidate]:
  """Every change that can be made, each on top of those before it."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  parts = _one_row_at_a_time(config, config.batch_size, shards)
  if parts["microbatches"] > config.microbatches:
    config = _changed(config, parts)
    yield Candidate(_flags(parts), config, model, mesh)
  if model.remat != "full":
    model = dataclasses.replace(model, remat="full")
    yield Candidate(_flags({"model.remat": "full"}), config, model, mesh)
  if mesh.shape["data"] > 1:
    shape = {"mesh.data": 1, "mesh.fsdp": shards}
    mesh = sharding.make_mesh(
      data=1,
      fsdp=shards,
      tensor=mesh.shape["tensor"],
      devices=list(mesh.devices.flat),
    )
    config = _changed(config, shape)
    yield Candidate(_flags(shape), config, model, mesh)
  if config.tuning == "lora" and config.base_dtype in ("float32", "bfloat16"):
    dtype = {"base_dtype": "int8"}
    config = _changed(config, dtype)
    yield Candidate(_flags(dtype), config, model, mesh)
  whole = config.batch_size
  for size in (whole // 2, whole // 4):
    if size < shards or size % shards:
      return
    fields = {"batch_size": size}
    fields |= _one_row_at_a_time(config, size, shards)
    config = _changed(config, fields)
    yield Candidate(_flags(fields), config, model, mesh)


def _one_row_at_a_time(
  config: shared.Config, size: int, shards: int
) -> dict[str, int]:
  """Numbers of microbatches with which each shard has one row."""
  if config.task != "rl":
    return {"microbatches": max(size // shards, 1)}
  return {
    "microbatches": max(size // config.ppo.minibatches // shards, 1),
    "score_microbatches": max(size // shards, 1),
  }


def _changed(config: shared.Config, fields: Mapping[str, Any]) -> shared.Config:
  made = config.copy_and_resolve_references()
  with made.unlocked():
    made.update_from_flattened_dict(dict(fields))
  return made.lock()


def _flags(fields: Mapping[str, Any]) -> str:
  return " ".join(f"--config.{name}={value}" for name, value in fields.items())
