"""From a config to the objects that tasks share: workdir, mesh, optimiser."""

import contextlib
import functools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax
from absl import logging

from perl_jax import hosts, optim, quantization, sharding
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.start import Outside

Config = ml_collections.ConfigDict

CONFIG_FILE = "config.json"
DTYPES = ("float32", "bfloat16")
# Fields, of a stage or of one in a pipeline, that say where a run computes and
# not what: it may go on elsewhere.
_WHERE = re.compile(r"config(\.\w+)*\.(mesh\.\w+|rollouts\.layout|fit): ")


@contextlib.contextmanager
def preparing(config: Config, workdir: str | Path) -> Iterator[Path]:
  """Claims a workdir for a config once everything in the block has worked.

  The block reads data and earlier stages, and may write into the workdir. If
  it fails, what was not there before is gone again, the workdir too (a stale
  tokenizer would be taken by the next command); if it succeeds, config.json is
  written. All of that is done by process 0 of the run, while the others wait.

  Raises:
    ValueError: The workdir belongs to a run with another config; the fields
      that differ are listed. Nothing is changed. Mesh and layouts may differ.
      Or it is not one that all hosts share.
  """
  workdir = Path(workdir).absolute()
  mine = json.loads(config.to_json())
  _refuse_other(workdir, mine)
  before = set(workdir.iterdir()) if workdir.exists() else None
  hosts.barrier("workdir looked at")
  undo = functools.partial(_remove_new, workdir, before)
  try:
    with hosts.undone_by_others(undo):
      hosts.on_primary(
        "workdir", lambda: workdir.mkdir(parents=True, exist_ok=True)
      )
      if not hosts.sees(workdir):
        raise ValueError(
          f"--workdir={workdir} was made by process 0 and is not there for"
          f" process {jax.process_index()}: it must lie on a file system that"
          " all hosts share."
        )
      yield workdir
      hosts.barrier("prepared")  # all of them
  except BaseException:
    if hosts.is_primary():
      undo()
    raise

  def claim():
    metrics_lib.write_json(workdir / CONFIG_FILE, mine)
    # The report shows it; a resumed run may have been started by another.
    command = shlex.join(["python", "-m", "perl_jax.main", *sys.argv[1:]])
    metrics_lib.write_text(workdir / "command.txt", command + "\n")

  hosts.on_primary("claimed", claim)


def _remove_new(workdir: Path, before: set[Path] | None) -> None:
  if before is None:
    shutil.rmtree(workdir, ignore_errors=True)
    return
  for path in set(workdir.iterdir()) - before:
    if path.is_dir():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink()


def _refuse_other(workdir: Path, mine: Mapping[str, Any]) -> None:
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file, not a directory.")
  path = workdir / CONFIG_FILE
  if not path.exists():
    return
  lines = differences(json.loads(path.read_text()), mine)
  moved = [line for line in lines if _WHERE.match(line)]
  lines = [line for line in lines if line not in moved]
  if moved and not lines:
    logging.info(
      "%s goes on in another layout: %s. Sums are rounded otherwise than if it"
      " had stayed.",
      workdir,
      ", ".join(moved),
    )
  if lines:
    listed = "\n  ".join(lines)
    raise ValueError(
      f"{workdir} belongs to a run with another config:\n  {listed}\n"
      "Give another --workdir, or remove this one to start afresh."
    )


def differences(theirs: Any, mine: Any, path: str = "config") -> list[str]:
  """Lines "config.field: theirs -> mine" for each field that differs."""
  if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
    lines = []
    for key in sorted(set(theirs) | set(mine)):
      missing = "(absent)"
      lines += differences(
        theirs.get(key, missing), mine.get(key, missing), f"{path}.{key}"
      )
    return lines
  return [] if theirs == mine else [f"{path}: {theirs!r} -> {mine!r}"]


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


def outside(config: Config, mesh: jax.sharding.Mesh) -> Outside:
  """How checkpoints that others made are read; see `start.Outside`."""
  if config.base_dtype not in quantization.DTYPES:
    raise ValueError(
      f"config.base_dtype={config.base_dtype!r}: choose one of"
      f" {', '.join(quantization.DTYPES)}."
    )
  fields = ("attention", "dtype", "remat", "scan_unroll")
  return Outside(
    base=config.base,
    dtype=config.base_dtype,
    mesh=mesh,
    model={field: config.model[field] for field in fields},
  )


def make_optimizer(
  config: Config,
  *,
  total_steps: int | None = None,
  delay_steps: int = 0,
  **changes: Any,
) -> optax.GradientTransformation:
  """The optimiser of `config.optimizer`.

  Args:
    config: Of a stage.
    total_steps: Updates that it is scheduled over; None is `config.steps`.
    delay_steps: Updates before the first that moves a parameter.
    **changes: Fields of `config.optimizer` to put others in place of.
  """
  fields = config.optimizer.to_dict() | changes
  schedule = optim.make_schedule(
    name=fields.pop("schedule"),
    learning_rate=fields.pop("learning_rate"),
    warmup_steps=fields.pop("warmup_steps"),
    total_steps=total_steps or config.steps,
    delay_steps=delay_steps,
  )
  return optim.make_optimizer(schedule=schedule, **fields)


def check_counts(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Checks the numbers that the loop and the mesh divide by.

  Raises:
    ValueError: Names the field and the value.
  """
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
  for field in ("steps", "batch_size", "microbatches", "eval_every"):
    if config[field] < 1:
      raise ValueError(f"config.{field}={config[field]} must be at least 1.")
  if config.batch_size % config.microbatches:
    raise ValueError(
      f"config.batch_size={config.batch_size} is not a multiple of"
      f" config.microbatches={config.microbatches}."
    )


def share(trainable: Any, frozen: Any) -> dict[str, float]:
  """What is trained, in numbers for the log and summary.json.

  `trainable_share` is trained parameters over all parameters of the role;
  `adapter_bytes` and `base_bytes` are the bytes of the two trees.
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
