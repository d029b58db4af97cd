"""What `rl_speed.py` measures of this project: one configuration, one process.

  python -m benchmarks.speed_arms rloo --steps=3

An RL iteration is what `tasks/rl.py` runs, a reward step what `tasks/reward.py`
runs, each from its task's own config; see `stages.py`.

Prints one line of JSON: seconds of each step and phase, wall-clock seconds and
processor seconds (user and system, all threads), FLOPs of the matrix products,
and the peak memory of the process and of the device.
"""

import argparse
import dataclasses
import itertools
import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import stages
from configs import reward as reward_config
from configs import rl as rl_config
from perl_jax import params as params_lib
from perl_jax import sharding
from perl_jax.models.config import ModelConfig
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.training.compiled import Compiled

# A step is clean if other processes used less than this share of the machine.
ELSEWHERE = 0.04

# A Llama of 14 million parameters, the shape that the other libraries run.
MODEL = {
  "vocab_size": 4096,
  "num_layers": 8,
  "width": 384,
  "mlp_width": 1024,
  "num_heads": 6,
  "num_kv_heads": 2,
  "head_dim": 64,
  "max_len": 256,
}


@dataclasses.dataclass(frozen=True)
class Arm:
  """One configuration.

  Attributes:
    estimator: As in configs/rl.py; "" is the step of a reward model.
    tuning: "lora" or "full".
    prompts: Prompts of an iteration, or pairs of a step.
    group: Samples of each prompt.
    microbatches: Microbatches of the update.
    score_microbatches: Microbatches of the scoring.
    merge: Whether rollouts run on merged adapters.
    remat: What the backward pass recomputes.
    base_dtype: Storage dtype of the base; full tuning trains in float32.
    prompt_len: Tokens of a prompt.
    response_len: Tokens of a response.
    model: Fields of `ModelConfig`, where there is no checkpoint.
    checkpoint: A Hugging Face checkpoint or a GGUF file to take shape and
      weights from; "" draws random weights. Tokens are random either way.
  """

  estimator: str
  tuning: str = "lora"
  prompts: int = 8
  group: int = 1
  # Microbatches of some hundred tokens fit the cache of a CPU.
  microbatches: int = 8
  score_microbatches: int = 8
  merge: bool = True
  remat: str = "none"
  base_dtype: str = "float32"
  prompt_len: int = 64
  response_len: int = 64
  model: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(MODEL))
  checkpoint: str = ""


_REWARD = {
  "estimator": "",
  "prompt_len": 128,
  "response_len": 128,
  "microbatches": 4,
}
ARMS = {
  "rloo": Arm("rloo", group=4),
  "rloo, full": Arm("rloo", "full", group=4),
  "reinforce": Arm("reinforce", group=4),
  "reinforce, full": Arm("reinforce", "full", group=4),
  "reinforce 32 x 1": Arm("reinforce", prompts=32),
  "reward": Arm(**_REWARD),
  "reward, full": Arm(**_REWARD, tuning="full"),
}


class Seconds(NamedTuple):
  """A reading of two clocks, or the difference of two readings, in seconds.

  Attributes:
    wall: Wall-clock time.
    cpu: Processor time of this process, user and system, all threads.
  """

  wall: float
  cpu: float

  def since(self, earlier: "Seconds") -> list[float]:
    """[wall, cpu] between two readings."""
    return [self.wall - earlier.wall, self.cpu - earlier.cpu]


def seconds_now() -> Seconds:
  """Reads both clocks."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return Seconds(time.perf_counter(), usage.ru_utime + usage.ru_stime)


class Clock:
  """A wall clock that records processor time too whenever it is read.

  Attributes:
    readings: All readings since the list was cleared.
  """

  def __init__(self):
    self.readings: list[Seconds] = []

  def __call__(self) -> float:
    """Wall-clock seconds."""
    self.readings.append(seconds_now())
    return self.readings[-1].wall


class Made(NamedTuple):
  """An arm, ready to run.

  Attributes:
    run: `run(number)` does a step or an iteration; it reads the clock before
      the first phase and after each.
    phases: The compiled functions of each phase, in order.
    policy_bytes: Bytes of all weights that the policy computes with; 0 without
      a policy.
  """

  run: Callable[[int], None]
  phases: Mapping[str, Sequence[Compiled]]
  policy_bytes: int


def _configured(config: ConfigDict, arm: Arm, **fields: Any) -> ConfigDict:
  return stages.configured(
    config,
    prompt_len=arm.prompt_len,
    response_len=arm.response_len,
    tuning=arm.tuning,
    batch_size=arm.prompts,
    microbatches=arm.microbatches,
    **fields,
  )


def rl_config_of(arm: Arm) -> ConfigDict:
  """The config of the RL task with the arm's fields."""
  return _configured(
    rl_config.get_config(),
    arm,
    estimator=arm.estimator,
    samples_per_prompt=arm.group,
    score_microbatches=arm.score_microbatches,
    beta=0.05,
    **{
      "sampling.temperature": 1.0,
      "rollouts.merge": arm.merge,
      "value.warmup_steps": 0,
    },
  )


def start_of(arm: Arm, mesh: Mesh) -> model_lib.Start:
  """The base that an arm runs on."""
  if not arm.checkpoint:
    model = ModelConfig(**arm.model, remat=arm.remat)
    return stages.random_start(model, dtype=arm.base_dtype)
  options = model_lib.ReadOptions(
    dtype=arm.base_dtype, mesh=mesh, model={"remat": arm.remat}
  )
  return model_lib.checkpoint_start(arm.checkpoint, options)


def make(arm: Arm, mesh: Mesh, clock: Clock) -> Made:
  """Builds an arm on a mesh; nothing compiles yet."""
  start = start_of(arm, mesh)
  if arm.estimator:
    return _rl_iteration(rl_config_of(arm), start, mesh, clock)
  config = _configured(reward_config.get_config(), arm)
  return _reward_step(config, start, mesh, clock)


def _reward_step(config, start, mesh, clock) -> Made:
  stage = stages.RewardStep(config, start, mesh)
  pairs = stages.random_pairs(config, start.config, mesh)
  batch = sharding.place_batch(mesh, pairs)

  def run(number):
    clock()
    stage.run(batch, number)
    clock()

  return Made(run, {"learn": [stage.program]}, 0)


def _rl_iteration(config, start, mesh, clock) -> Made:
  stage = stages.RLIteration(config, start, mesh, clock)
  programs, vocab = stage.programs, start.config.vocab_size

  def run(number):
    stage.run(stages.random_prompts(config, vocab, number), number)

  scoring = [f for f in (programs.score, programs.prepare) if f is not None]
  return Made(
    run,
    {"sample": [programs.sample], "score": scoring, "learn": [programs.learn]},
    params_lib.nbytes((programs.anchor.trainable, programs.base)),
  )


def _busy() -> float:
  """Processor seconds of the whole machine so far; 0 where it is not known."""
  if not Path("/proc/stat").exists():
    return 0.0
  fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
  user, nice, system, _, _, *others = map(int, fields)
  return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def _timed(made: Made, clock: Clock, number: int) -> dict[str, Any]:
  """Runs a step; an entry of `measure`'s `steps`."""
  clock.readings.clear()
  busy, before = _busy(), seconds_now()
  made.run(number)
  wall, cpu = whole = seconds_now().since(before)
  others = (_busy() - busy - cpu) / (wall * os.cpu_count())
  spent = {
    phase: end.since(start)
    for phase, (start, end) in zip(
      made.phases, itertools.pairwise(clock.readings), strict=True
    )
  }
  return {"spent": spent | {"all": whole}, "clean": others <= ELSEWHERE}


def measure(
  arm: Arm, *, warmup: int, count: int, profile: str = ""
) -> dict[str, Any]:
  """Runs an arm.

  Args:
    arm: What to run.
    warmup: Steps that are not measured; the first one compiles.
    count: Measured steps.
    profile: Folder for a trace of one step more, or "".

  Returns:
    `steps`, one for each measured: "spent", {phase: [wall, cpu]} with the whole
    under "all", and "clean", whether other processes had less than 4 % of the
    machine; `peak_bytes` of the process; `device`, its kind, and
    `device_peak_bytes` of its allocator, None where it reports nothing; `flops`
    of a step's products by phase; and `policy_bytes`.
  """
  mesh, clock = sharding.make_mesh(data=1, fsdp=1, tensor=1), Clock()
  with jax.set_mesh(mesh):
    made = make(arm, mesh, clock)
    steps = [_timed(made, clock, k + 1) for k in range(warmup + count)]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    device = mesh.devices.flat[0]
    memory = device.memory_stats() or {}
    flops = {
      phase: sum(f.flops_run() for f in functions) / len(steps)
      for phase, functions in made.phases.items()
    }
    if profile:
      with jax.profiler.trace(profile):
        made.run(len(steps) + 1)
  return {
    "steps": steps[warmup:],
    "peak_bytes": usage.ru_maxrss * 1024,
    "device": device.device_kind,
    "device_peak_bytes": memory.get("peak_bytes_in_use"),
    "flops": flops,
    "policy_bytes": made.policy_bytes,
  }


def main() -> None:
  """Measures one arm."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("arm", choices=sorted(ARMS))
  parser.add_argument("--steps", type=int, default=4)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--set", default="{}", help="JSON: fields of the arm")
  parser.add_argument("--profile", default="", help="folder for a trace")
  given = parser.parse_args()
  arm = dataclasses.replace(ARMS[given.arm], **json.loads(given.set))
  found = measure(
    arm, warmup=given.warmup, count=given.steps, profile=given.profile
  )
  print(json.dumps(found))


if __name__ == "__main__":
  main()
