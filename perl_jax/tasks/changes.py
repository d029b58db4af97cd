"""What to change where a stage does not fit: tried, not guessed."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from perl_jax import sharding
from perl_jax.models.config import ModelConfig
from perl_jax.tasks import setup

# plan_stage(config, model, mesh).
Planner = Callable[[setup.Config, ModelConfig, Mesh], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A stage with some fields changed.

  Attributes:
    change: The latest of the fields, as a flag.
    config: Of the stage.
    model: Of the base.
    mesh: The same devices, perhaps in another shape.
  """

  change: str
  config: setup.Config
  model: ModelConfig
  mesh: Mesh


def try_changes(
  config: setup.Config, model: ModelConfig, mesh: Mesh, plan: Planner
) -> list[dict[str, Any]]:
  """Plans one change on top of the other until the stage fits.

  In the order of what they cost: more microbatches, rematerialisation, the base
  over all devices, the base in int8, half the batch, a quarter of it.

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
  config: setup.Config, model: ModelConfig, mesh: Mesh
) -> Iterator[Candidate]:
  """Each change that can be made, on top of those before it."""

  def changed(**fields: Any) -> setup.Config:
    made = config.copy_and_resolve_references()
    with made.unlocked():
      made.update_from_flattened_dict(fields)
    return made.lock()

  def parts(size: int) -> int:
    """Microbatches that leave a device one row at a time."""
    if config.task == "rl":
      size //= config.ppo.minibatches
    return max(size // (mesh.shape["data"] * mesh.shape["fsdp"]), 1)

  def split(size: int) -> dict[str, int]:
    fields = {"microbatches": parts(size)}
    if config.task == "rl":
      fields["score_microbatches"] = parts(size)
    return fields

  fields = split(config.batch_size)
  if fields["microbatches"] > config.microbatches:
    config = changed(**fields)
    yield Candidate(_flags(config, fields), config, model, mesh)
  if model.remat != "full":
    model = dataclasses.replace(model, remat="full")
    yield Candidate("--config.model.remat=full", config, model, mesh)
  whole = mesh.shape["data"] * mesh.shape["fsdp"]
  if mesh.shape["data"] > 1:
    mesh = sharding.make_mesh(
      data=1,
      fsdp=whole,
      tensor=mesh.shape["tensor"],
      devices=list(mesh.devices.flat),
    )
    shape = {"mesh.data": 1, "mesh.fsdp": whole}
    config = changed(**shape)
    yield Candidate(_flags(config, shape), config, model, mesh)
  if config.tuning == "lora" and config.base_dtype in ("float32", "bfloat16"):
    config = changed(base_dtype="int8")
    yield Candidate("--config.base_dtype=int8", config, model, mesh)
  for divisor in (2, 4):
    size = config.batch_size // 2
    if size < whole or size % whole:
      return
    fields = {"batch_size": size} | split(size)
    config = changed(**fields)
    yield Candidate(_flags(config, fields), config, model, mesh)
    del divisor


def _flags(config: setup.Config, fields: Any) -> str:
  del config
  return " ".join(f"--config.{name}={value}" for name, value in fields.items())
