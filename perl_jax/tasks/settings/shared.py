"""Settings that all stages have: mesh, adapters, optimiser, sampling."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from absl import logging

from perl_jax import buckets, names, optim, sampling, sharding
from perl_jax import params as params_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.settings import config_files

Config = ml_collections.ConfigDict

DTYPES = ("float32", "bfloat16")
# What to do where a number is not finite; see `training.nonfinite`.
NONFINITE = ("stop", "skip")
_LEAST_BUCKET = 16


def as_written(config: Config) -> dict[str, Any]:
  """A config as config.json has it, with addresses as the user gave them."""
  return buckets.named(json.loads(config.to_json()))


def make_mesh(config: Config) -> jax.sharding.Mesh:
  """The mesh of `config.mesh`.

  Raises:
    ValueError: It does not fit the devices, or leaves a process out.
  """
  mesh = sharding.make_mesh(**config.mesh.to_dict())
  inside = {device.process_index for device in mesh.devices.flat}
  if len(inside) < jax.process_count():
    raise ValueError(
      f"config.mesh={config.mesh.to_dict()} takes {mesh.size} of"
      f" {jax.device_count()} devices, and only {len(inside)} of"
      f" {jax.process_count()} processes have one of them. Use all devices: set"
      " one size to -1."
    )
  return mesh


def lora_spec(config: Config) -> LoraSpec:
  """The adapter's shape; rank 0 when the whole model is tuned."""
  if config.tuning == "full":
    return LoraSpec(rank=0)
  return LoraSpec(**config.lora.to_dict())


class Optimizer(NamedTuple):
  """What a stage is trained by.

  Attributes:
    transformation: The Optax chain.
    learning_rates: Schedule of each learning rate, by the name of its metric;
      a function of the number of updates before.
  """

  transformation: optax.GradientTransformation
  learning_rates: Mapping[str, optax.Schedule]


def make_optimizer(
  config: Config,
  *,
  total_steps: int | None = None,
  zero_steps: int = 0,
  section: str = "optimizer",
  values: Mapping[str, Any] | None = None,
) -> Optimizer:
  """The optimiser of `config.optimizer`.

  Args:
    config: Config of a stage.
    total_steps: Updates that its schedule spans; None is `config.steps`.
    zero_steps: First updates, with a learning rate of 0.
    section: Section whose `learning_rate` it has.
    values: Numbers to use instead of those of the config, by dotted field; see
      `settings.members`.
  """
  fields, rate = config.optimizer.to_dict(), config[section].learning_rate
  fields.pop("learning_rate")
  schedule = optim.make_schedule(
    name=fields.pop("schedule"),
    learning_rate=(values or {}).get(f"{section}.learning_rate", rate),
    warmup_steps=fields.pop("warmup_steps"),
    total_steps=total_steps or config.steps,
    zero_steps=zero_steps,
  )
  transformation = optim.make_optimizer(schedule=schedule, **fields)
  return Optimizer(transformation, {"learning_rate": schedule})


def _check_warmup(config: Config) -> None:
  """Says in the log that a warm-up takes the whole run; RL counts updates."""
  warmup = config.optimizer.warmup_steps
  if config.task != "rl" and warmup >= config.steps:
    logging.warning(
      "config.optimizer.warmup_steps=%d: in %d steps the learning rate does not"
      " rise to its value. Warm up for fewer steps, or train for more.",
      warmup,
      config.steps,
    )


def check_counts(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Checks that batches divide over the mesh and into microbatches, and modes.

  Raises:
    ValueError: Names the field and the value.
  """
  _check_warmup(config)
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  for field, size in (
    ("batch_size", config.batch_size),
    ("eval.batch_size", config.eval.batch_size),
  ):
    if size % shards:
      raise ValueError(
        f"config.{field}={size} does not divide over mesh.data * mesh.fsdp ="
        f" {shards} devices; change it or the mesh."
      )
  if config.nonfinite not in NONFINITE:
    hint = names.did_you_mean(config.nonfinite, NONFINITE)
    raise ValueError(
      f"config.nonfinite={config.nonfinite!r}: choose one of {NONFINITE}.{hint}"
    )
  if config.batch_size % config.microbatches:
    raise ValueError(
      f"config.batch_size={config.batch_size} is not a multiple of"
      f" config.microbatches={config.microbatches}."
    )
  profiled_steps(config)


def profiled_steps(config: Config) -> tuple[int, int] | None:
  """(first, last) step of the trace, None for no trace.

  Raises:
    ValueError: `config.profile.steps` are no two steps of the run in order.
  """
  steps = tuple(config.profile.steps)
  if not steps:
    return None
  if len(steps) != 2 or not steps[0] <= steps[1] <= config.steps:
    raise ValueError(
      f"config.profile.steps={steps} must be the first and the last step of a"
      f" trace, from 1 to config.steps={config.steps}, such as"
      f" (1, {min(3, config.steps)}); () makes none."
    )
  return steps


class Saving(NamedTuple):
  """When checkpoints are made beside those of evaluations, and how many stay.

  Attributes:
    every_steps: Steps between checkpoints; 0 for none by steps.
    every_seconds: Seconds between checkpoints; 0 for none by the clock.
    keep: Number of latest checkpoints to keep beside the best.
  """

  every_steps: int
  every_seconds: float
  keep: int


def saving_of(config: Config) -> Saving:
  """The fields of `config.save`."""
  return Saving(**config.save.to_dict())


def require_backbone(config: Config, role: str) -> None:
  """Checks that an adapter is trained on a backbone that somebody has trained.

  On random weights that stay as they are, losses fall and rewards rise as on a
  real one, and mean nothing.

  Args:
    config: Config of a stage.
    role: Role that it trains, "policy" or "reward".

  Raises:
    ValueError: There is no earlier stage and no base, and the tuning is LoRA.
  """
  if config.tuning == "lora" and not config[role].init and not config.base:
    raise ValueError(
      f"config.{role}.init and config.base are empty: config.tuning='lora'"
      " would train an adapter on a backbone with random weights. Set"
      f" config.{role}.init to the workdir of {config_files.called('sft')},"
      " config.base to a"
      " pretrained checkpoint, or config.tuning to 'full'."
    )


def share(trainable: Any, frozen: Any) -> dict[str, float]:
  """What is trained, in numbers for the log and summary.json.

  `trainable_share` is trained parameters over all parameters of the role;
  `trainable_bytes` and `frozen_bytes` are the sizes of the two trees.

  Raises:
    ValueError: Nothing is trainable.
  """
  mine, rest = params_lib.count(trainable), params_lib.count(frozen)
  if not mine:
    raise ValueError("Nothing is trainable: check config.tuning and lora.*.")
  return {
    "trainable_parameters": mine,
    "trainable_share": mine / (mine + rest),
    "trainable_bytes": params_lib.nbytes(trainable),
    "frozen_bytes": params_lib.nbytes(frozen),
  }


def response_buckets(longest: int) -> tuple[int, ...]:
  """Lengths that responses are cut to: a quarter and a half of the longest, it.

  Few, because each compiles what is computed of responses once more, and none
  that is too short to save time.
  """
  shorter = (longest // 4, longest // 2)
  return (*(n for n in shorter if n >= _LEAST_BUCKET), longest)


def evaluation_spec(
  config: Config, tokenization: tokenization_lib.Tokenization
) -> sampling.SamplingSpec:
  """How an evaluation samples, by `config.eval`, with the tokenizer's stops."""
  return sampling.SamplingSpec(
    response_len=config.data.response_len,
    stop_ids=tokenization.stop_ids,
    pad_id=tokenization.pad_id,
    temperature=config.eval.temperature,
    greedy=config.eval.greedy,
  )
