"""Plans a run before it is started: memory, time, and what to change.

The programs of the stages are compiled ahead of time from abstract arrays, for
TPUs that need not be attached or for the devices of this machine. Each figure
is the compiler's, or follows from the compiled program; see
`planning.estimate`.
"""

import dataclasses
import functools
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import topologies
from jax.sharding import Mesh

from perl_jax import files, sharding, tasks
from perl_jax.interop import pretrained
from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from perl_jax.planning import chips, estimate, libtpu
from perl_jax.reporting import phases, plans
from perl_jax.tasks.dry_run import abstract, memory_check, suggestions
from perl_jax.tasks.dry_run.programs import Program, StagePrograms
from perl_jax.tasks.initial import manifest, restore
from perl_jax.tasks.settings import defaults, shared
from perl_jax.tasks.training import workdir as workdir_lib

FILE = "plan.json"

# Fields of the plan's config that all stages share.
_SHARED = ("tuning", "base_dtype", "lora", "mesh")

# How the TPU's compiler refuses a program: it names all the memory that is
# needed, or what is needed beside the arguments.
_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_TEMPORARIES = re.compile(
  r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM"
  r" \([\d.]+[KMGT]\)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Compiles, prints, writes plan.json; the summary has each stage's peak.

  Raises:
    ValueError: The model, a stage or the topology is unknown, or the mesh does
      not fit the devices.
  """
  names = stages_of(config)
  model = model_of(config, names)
  mesh = sharding.make_mesh(
    **config.mesh.to_dict(), devices=devices_of(config.plan.topology)
  )
  for name in names:
    for tuning in tunings(config):
      made = stage_config(config, name, tuning)
      shared.check_counts(made, mesh)
      make_stage(made, model, mesh)
  with workdir_lib.preparing(config, workdir) as workdir:
    pass
  found = {
    "model": config.model,
    "topology": config.plan.topology,
    "mesh": dict(mesh.shape),
    "devices": mesh.size,
    "device_kind": mesh.devices.flat[0].device_kind,
    "assumptions": list(estimate.ASSUMPTIONS),
    "stages": {},
  }
  device = chips.device_of(list(mesh.devices.flat))
  if device is not None:
    found["chip"] = dataclasses.asdict(device)
  planner = functools.partial(plan_stage, members=config.reward.ensemble)
  for name in names:
    found["stages"][name] = {}
    for tuning in tunings(config):
      made = stage_config(config, name, tuning)
      planned = planner(made, model, mesh)
      found["stages"][name][tuning] = planned
      asked = config.plan.suggest and tuning == config.tuning
      if asked and not planned["fits"]:
        planned["changes"] = suggestions.try_changes(made, model, mesh, planner)
      # Written as it grows: a plan of large models takes minutes.
      files.write_json(workdir / FILE, found)
  for line in plans.lines(found):
    print(line)
  print(f"\n{workdir / FILE}")
  return plans.summary(found)


def tunings(config: shared.Config) -> tuple[str, ...]:
  """Tunings to plan: the config's, and "full" too if `plan.full` is set."""
  both = config.plan.full and config.tuning == "lora"
  return ("lora", "full") if both else (config.tuning,)


def stages_of(config: shared.Config) -> list[str]:
  """Names in `config.plan.stages`.

  Raises:
    ValueError: One of them is no training stage.
  """
  names = [n.strip() for n in config.plan.stages.split(",") if n.strip()]
  wrong = [name for name in names if name not in tasks.TRAINING]
  if wrong or not names:
    raise ValueError(
      f"config.plan.stages={config.plan.stages!r}: name some of"
      f" {', '.join(tasks.TRAINING)}, with commas between them."
    )
  return names


def stage_config(
  config: shared.Config, name: str, tuning: str
) -> shared.Config:
  """The config of one stage: its own, with the plan's model and mesh in it."""
  made = config[name].copy_and_resolve_references()
  with made.unlocked():
    for field in _SHARED:
      made[field] = config[field]
    made.tuning = tuning
    if tuning == "full":
      # A quantised base cannot be trained; the copies are float32 anyway.
      made.base_dtype = "float32"
      made.members, made.vary = 1, ""  # members are adapters
  # What is left depends on the backbone, and changes no shape.
  return defaults.from_scratch(made)


def model_of(config: shared.Config, names: Sequence[str]) -> ModelConfig:
  """The model that `config.model` names, without reading a weight.

  Raises:
    FileNotFoundError: There is no such GGUF file.
    ValueError: It is neither a preset nor a directory or file of a model.
  """
  room = max(
    max(c.data.max_len, c.data.prompt_len + c.data.response_len)
    for c in (config[name] for name in names)
  )
  fields = config.compute.to_dict() | {"max_len": room}
  if config.vocab_size:
    fields["vocab_size"] = config.vocab_size
  path = Path(config.model)
  if path.is_dir() or pretrained.kind_of(path):
    found = restore.model_in(path, "model")
    if found is None:
      raise ValueError(
        f"config.model={config.model!r} is a directory, but neither of a run"
        f" ({manifest.MODEL_FILE}) nor a Hugging Face checkpoint (config.json),"
        " and holds no GGUF file. Of a PEFT adapter, give the base."
      )
    return dataclasses.replace(found, **fields)
  known = presets.PRESETS.get(config.model, {"vocab_size": 0})
  if "vocab_size" not in known | fields:
    raise ValueError(
      f"The preset config.model={config.model!r} leaves the vocabulary to the"
      " tokenizer: set config.vocab_size."
    )
  return presets.preset(config.model, **fields)


def devices_of(topology: str) -> Sequence[Any]:
  """Devices of a topology that need not be here; "" is this machine's.

  Raises:
    ValueError: libtpu is not installed, or does not know the topology.
  """
  if not topology:
    return jax.devices()
  libtpu.quiet(os.environ)
  libtpu.hide_cpu_flags(os.environ)
  # Else libtpu asks a metadata server, which only TPU VMs have.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  try:
    return topologies.get_topology_desc(topology, platform="tpu").devices
  except Exception as error:  # what libtpu raises has no type of its own
    if "not installed" in str(error):
      raise ValueError(
        f"config.plan.topology={topology!r} needs the TPU's compiler:"
        " pip install libtpu. (It compiles without a TPU.)"
      ) from error
    raise ValueError(
      f"config.plan.topology={topology!r}: {error} Known are names such as"
      " 'v5e:4x4', 'v6e:2x2', 'v4:2x2x1', 'v5p:2x2x2' and 'tpu7x:2x2x1'."
    ) from error


def make_stage(
  config: shared.Config, model: ModelConfig, mesh: Mesh, **options: Any
) -> StagePrograms:
  """The programs of the task that a config names; see `abstract.make_stage`.

  Raises:
    ValueError: The task does not train, or the stage refuses the config.
  """
  if config.task not in tasks.TRAINING:
    raise ValueError(
      f"There is no plan for task {config.task!r}: choose one of"
      f" {', '.join(tasks.TRAINING)}."
    )
  programs = tasks.TASKS[config.task].module().programs
  return abstract.make_stage(programs, config, model, mesh, **options)


def plan_stage(
  config: shared.Config, model: ModelConfig, mesh: Mesh, members: int = 1
) -> dict[str, Any]:
  """Memory and time of a stage on a mesh; see `plan_made`.

  Args:
    config: Config of a training stage.
    model: Shapes and switches of the transformer.
    mesh: Mesh to plan for; its devices need not be attached.
    members: Number of reward models in RL's ensemble.
  """
  made = make_stage(config, model, mesh, reward_members=members)
  return {"batch_size": config.batch_size} | plan_made(made)


def plan_made(made: StagePrograms) -> dict[str, Any]:
  """Memory and time of the programs of a stage, as JSON.

  Bytes are those of one device, seconds those of one training step:

    held           by name; what is in memory whichever program runs
    cache_bytes    of the KV cache while sampling; 0 without one
    programs       by name: bytes, FLOPs, bounds, seconds; see `estimate`
    peak_bytes     held + own of the program that needs most
    limit_bytes    that a device has, or None
    fits           whether that is enough
    seconds        predicted, None where the chip is not known
  """
  devices = list(made.mesh.devices.flat)
  device, held = chips.device_of(devices), made.held_bytes()
  planned = {}
  for program in made.programs():
    others = sum(v for k, v in held.items() if k not in program.uses)
    with phases.phase(f"compiling {made.name}: {program.name}"):
      planned[program.name] = _plan_program(program, made.mesh, device, others)
    logging.info("%s: %s", made.name, program.name)
  peak = max(p["peak_bytes"] for p in planned.values())
  limit = memory_check.memory_limit(made.mesh, device)
  refused = any("refused" in p for p in planned.values())
  seconds = None
  if device is not None and not refused:
    seconds = sum(p["runs"] * p["times"]["step"] for p in planned.values())
  return {
    "held": held,
    "cache_bytes": made.cache_bytes(),
    "programs": planned,
    "peak_bytes": peak,
    "limit_bytes": limit,
    "fits": not refused and (limit is None or peak <= limit),
    "seconds": seconds,
  }


def _plan_program(
  program: Program, mesh: Mesh, device: Any, others: int
) -> dict[str, Any]:
  started = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = program.function.jitted(*program.args).trace(*program.args)
    try:
      executable, text = _compile(traced.lower(), mesh.devices.flat[0].platform)
    except jax.errors.JaxRuntimeError as error:
      return {"runs": program.runs} | _refused(error, program, others)
  cost = estimate.cost_of(traced, executable, text, mesh.size)
  found = {
    "peak_bytes": cost.peak_bytes + others,
    "runs": program.runs,
    "cost": dataclasses.asdict(cost),
    "compile_seconds": time.perf_counter() - started,
  }
  if device is not None:
    found["times"] = dataclasses.asdict(estimate.times_of(cost, device))
  return found


def _compile(lowered: Any, platform: str) -> tuple[Any, str]:
  """(executable, the optimised program as text).

  jaxlib 0.10 cannot read the programs that the TPU's compiler makes for some
  chips, v5p among them, so the compiler writes them to a file.
  """
  if platform != "tpu":
    executable = lowered.compile()
    return executable, executable.as_text()
  with tempfile.TemporaryDirectory() as directory:
    options = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
    executable = lowered.compile(compiler_options=options)
    (path,) = Path(directory).glob("*.after_codegen.txt")
    return executable, path.read_text()


def _refused(error: Exception, program: Program, others: int) -> dict[str, Any]:
  """The memory that a refused program needs, from the compiler's error.

  Raises:
    JaxRuntimeError: It was for another reason.
  """
  for pattern, held in (
    (_NEEDED, others),
    (_TEMPORARIES, others + estimate.device_bytes(program.args)),
  ):
    found = pattern.search(str(error))
    if found:
      size = float(found.group(1)) * _UNITS[found.group(2)]
      return {"peak_bytes": int(size) + held, "refused": found.group(0)}
  raise error
