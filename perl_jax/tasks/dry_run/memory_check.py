"""Whether a stage can fit in memory, before anything is read or compiled.

What a stage keeps in memory all the time (base, adapters, optimiser, and the KV
cache while it samples) follows from shapes alone, in a second. A run that has
no memory even for that is refused. How much is needed beyond it only the
compiler knows; the task `plan` compiles the stage to find out.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from perl_jax.planning import chips
from perl_jax.tasks.dry_run import abstract
from perl_jax.tasks.dry_run.programs import StagePrograms
from perl_jax.tasks.initial import restore
from perl_jax.tasks.settings import config_files, shared

CHOICES = ("refuse", "warn", "off")


def check(
  config: shared.Config,
  role: str,
  programs: Callable[[abstract.AbstractStage], StagePrograms],
) -> None:
  """Refuses a training stage that cannot fit, or warns, as `config.fit` says.

  Args:
    config: Config of the stage.
    role: Role that the stage starts from, "policy" or "reward".
    programs: The command's own function of that name.

  Raises:
    ValueError: `config.fit` is unknown; or it is "refuse", and what the stage
      holds is more than a device has.
  """
  if config.fit not in CHOICES:
    raise ValueError(
      f"config.fit={config.fit!r}: choose one of {', '.join(CHOICES)}."
    )
  if config.fit == "off":
    return
  model = _model_of(config, role)
  if model is None:
    return  # the command says what is wrong with where it starts from
  mesh = shared.make_mesh(config)
  made = abstract.make_stage(programs, config, model, mesh)
  held = made.held_bytes()
  if made.cache is not None:
    held["KV cache"] = made.cache_bytes()
  limit = memory_limit(mesh, chips.device_of(list(mesh.devices.flat)))
  needed = sum(held.values())
  if limit is None or needed <= limit:
    return
  parts = ", ".join(f"{k} {v / 2**30:.2f}" for k, v in held.items())
  message = (
    f"This run needs at least {needed / 2**30:.2f} GiB on each device ({parts})"
    f" and a {mesh.devices.flat[0].device_kind} has {limit / 2**30:.2f}. Use"
    " more devices on config.mesh.fsdp, config.base_dtype='bfloat16' or 'int8',"
    " config.tuning='lora', or a smaller batch;"
    f" {config_files.called('plan')} tries them."
  )
  if config.fit == "refuse":
    raise ValueError(message + " To run it all the same: --config.fit=warn.")
  logging.warning("%s", message)


def _model_of(config: shared.Config, role: str) -> ModelConfig | None:
  """The model that a stage will have, or None if it is not there to be read."""
  init = config[role].init
  for directory, field in ((init, f"{role}.init"), (config.base, "base")):
    if not directory:
      continue
    found = restore.model_in(directory, field, config.base)
    if found is not None:
      return found
  if init or config.base:
    return None
  return presets.preset(
    config.model.preset,
    vocab_size=config.data.vocab_size,  # the tokenizer may have fewer
    max_len=max(
      config.data.max_len, config.data.prompt_len + config.data.response_len
    ),
    dtype=config.model.dtype,
  )


def memory_limit(mesh: Mesh, device: chips.Chip | None) -> int | None:
  """Bytes that a device of the mesh may use; None if they are not known.

  For an attached device it is the limit of its allocator, for a chip that is
  not attached its published memory, and for a CPU device its share of this
  machine's memory.
  """
  first: Any = mesh.devices.flat[0]
  # A device of an ahead-of-time topology has no allocator, and raises.
  with contextlib.suppress(jax.errors.JaxRuntimeError, NotImplementedError):
    stats = first.memory_stats()
    if stats and "bytes_limit" in stats:
      return int(stats["bytes_limit"])
  if device is not None:
    return int(device.hbm_bytes)
  if first.platform == "cpu" and hasattr(os, "sysconf"):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count()
  return None
