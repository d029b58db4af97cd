"""What `rl_speed.py` measures of this project: one configuration, one process.

  python -m benchmarks.speed_arms rloo --steps=3

An RL iteration is what `tasks/rl.py` runs, a reward step what `tasks/reward.py`
runs, each from its task's own config, with random weights and tokens in place
of a workdir and a data set, and no token that could stop a response.

Prints one line of JSON: seconds of each step and phase, by the clock and of the
processor (user and system, all threads), FLOPs of its products, and the peak
memory of the process and of the device.
"""

import argparse
import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import reward as reward_config
from configs import rl as rl_config
from perl_jax import params as params_lib
from perl_jax import roles, sampling, sharding, steps
from perl_jax.data.batches import preferences, prompts
from perl_jax.models.config import ModelConfig
from perl_jax.planning import flops
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training.compiled import Compiled

# A step is clean if others had less than this of the machine.
ELSEWHERE = 0.04

# A Llama of 14 million parameters, that of the peers.
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
    microbatches: Parts of the update.
    score_microbatches: Parts of the scoring.
    merge: Whether rollouts run on merged adapters.
    remat: What the backward pass makes again.
    base_dtype: That the base is kept in; full tuning trains in it.
    prompt_len: Tokens of a prompt.
    response_len: Tokens of a response.
    model: Fields of `ModelConfig`.
  """

  estimator: str
  tuning: str = "lora"
  prompts: int = 8
  group: int = 1
  # Parts of some hundred tokens fit the cache of a CPU.
  microbatches: int = 8
  score_microbatches: int = 8
  merge: bool = True
  remat: str = "none"
  base_dtype: str = "float32"
  prompt_len: int = 64
  response_len: int = 64
  model: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(MODEL))


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


def seconds_now() -> tuple[float, float]:
  """(by the clock, of the processor), user and system of all threads."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return time.perf_counter(), usage.ru_utime + usage.ru_stime


class Meter:
  """Adds up what phases take.

  Attributes:
    spent: `{phase: [wall, cpu]}`, seconds.
    flops: `{phase: {program: FLOPs of its products}}`.
    policy_bytes: Of all weights that the policy computes with.
  """

  def __init__(self):
    self.spent: dict[str, list[float]] = {}
    self.flops: dict[str, dict[str, float]] = {}
    self.policy_bytes = 0

  def timed(self, phase: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, waited for and counted under `phase`."""

    def run(*args, **kwargs):
      if isinstance(fn, Compiled):
        programs = self.flops.setdefault(phase, {})
        if fn.name not in programs:
          jaxpr = fn.jitted(*args).trace(*args).jaxpr
          programs[fn.name] = flops.matmul_flops(jaxpr)
      before = seconds_now()
      result = jax.block_until_ready(fn(*args, **kwargs))
      total = self.spent.setdefault(phase, [0.0, 0.0])
      for i, (start, end) in enumerate(zip(before, seconds_now(), strict=True)):
        total[i] += end - start
      return result

    return run


def _tokens(seed: int, *shape: int, vocab: int) -> np.ndarray:
  generator = np.random.default_rng(seed)
  return generator.integers(vocab, size=shape).astype(np.int32)


def _random_head(trainable: params_lib.Params) -> dict[str, Any]:
  """The tree with a head that does not say 0: rewards should differ."""
  kernel = trainable[params_lib.HEAD]["kernel"]
  drawn = jax.random.normal(jax.random.key(1), kernel.shape)
  head = trainable[params_lib.HEAD] | {"kernel": drawn}
  return dict(trainable) | {params_lib.HEAD: head}


def _configured(config: shared.Config, arm: Arm) -> shared.Config:
  config.tuning = arm.tuning
  config.batch_size = arm.prompts
  config.microbatches = arm.microbatches
  return config


def _start(arm: Arm) -> model_lib.Start:
  model = ModelConfig(**arm.model, remat=arm.remat)
  return model_lib.random_start(model, 0, Path(), arm.base_dtype)


def make_reward_step(arm: Arm, mesh, meter: Meter) -> Callable[[int], None]:
  """Returns `run(number)`: one update of a pairwise reward model."""
  config = _configured(reward_config.get_config(), arm)
  start, lora = _start(arm), shared.lora_spec(config)
  trainable, frozen = trainable_lib.trainable_of(
    start, lora=lora, tuning=arm.tuning, seed=0, head="scalar"
  )
  optimizer = shared.make_optimizer(config)
  frozen = sharding.place(mesh, frozen, share=True)
  state = steps.init_state(sharding.place(mesh, trainable), optimizer)
  state = sharding.place(mesh, state)
  loss = steps.pairwise_loss(
    roles.Backbone(start.config, lora), max_response=arm.response_len
  )
  step = meter.timed(
    "learn",
    Compiled(
      steps.make_train_step(loss, optimizer, microbatches=arm.microbatches),
      name="reward step",
      donate=(0,),
    ),
  )
  length = arm.prompt_len + arm.response_len
  lengths = np.full(arm.prompts, length, np.int32)
  sides = [
    _tokens(i, arm.prompts, length, vocab=start.config.vocab_size)
    for i in (0, 1)
  ]
  sides[1][:, : arm.prompt_len] = sides[0][:, : arm.prompt_len]
  batch = preferences.PreferenceBatch(
    chosen_tokens=sides[0],
    chosen_lengths=lengths,
    rejected_tokens=sides[1],
    rejected_lengths=lengths,
    prompt_lengths=lengths - arm.response_len,
    valid=np.ones(arm.prompts, bool),
    index=np.arange(arm.prompts, dtype=np.int32),
  )
  batch, key = sharding.place_batch(mesh, batch), jax.random.key(0)

  def run(number):
    nonlocal state
    state, _ = step(state, frozen, batch, jax.random.fold_in(key, number))

  return run


def rl_config_of(arm: Arm) -> shared.Config:
  """The task's config with an arm's choices."""
  config = _configured(rl_config.get_config(), arm)
  config.estimator = arm.estimator
  config.samples_per_prompt = arm.group
  config.score_microbatches = arm.score_microbatches
  config.beta, config.sampling.temperature = 0.05, 1.0
  config.rollouts.merge = arm.merge
  config.value.warmup_steps = 0
  return config


def make_rl_iteration(arm: Arm, mesh, meter: Meter) -> Callable[[int], None]:
  """Returns `run(number)`: one iteration of `tasks/rl.py`."""
  config = rl_config_of(arm)
  estimator = rl_settings.estimator_of(config)
  optimizer = rl_settings.make_optimizer(config)
  start, lora = _start(arm), shared.lora_spec(config)

  def of(seed, head):
    return trainable_lib.trainable_of(
      start, lora=lora, tuning=arm.tuning, seed=seed, head=head
    )

  policy, frozen = of(0, "")
  meter.policy_bytes = params_lib.nbytes((policy, frozen))
  judged = _random_head(of(2, "scalar")[0])
  trainable = policy
  if estimator.uses_value:
    value = initial_roles.initial_value(config, start, None, lora)
    trainable = {"policy": policy, "value": value}
  base = sharding.place(mesh, frozen, share=True)
  anchor = sharding.place(mesh, policy)
  state = steps.init_state(
    sharding.place(mesh, trainable), optimizer, beta=config.beta
  )
  state = sharding.place(mesh, state)
  backbone = roles.Backbone(start.config, lora)
  model = rewards.Model(
    backbone, sharding.place(mesh, judged), base, 1, bool(frozen)
  )
  spec = sampling.SamplingSpec(
    response_len=arm.response_len,
    stop_ids=(start.config.vocab_size,),
    **config.sampling.to_dict(),
  )
  engine = engine_lib.Engine(backbone, spec, backbone)
  functions = build.make_functions(
    config, estimator, optimizer, engine, model, on_base=bool(base)
  )
  iterate = iteration.Iteration(
    estimator,
    _timed(functions, meter),
    mesh=mesh,
    base=base,
    anchor=anchor,
    reward=rewards.Rewarder(
      model, engine.rewards, None, unstopped_penalty=config.unstopped_penalty
    ),
    rows=(),
    key=jax.random.key(0),
    control=iteration.Control(),
  )
  vocab = backbone.config.vocab_size

  def run(number):
    nonlocal state
    batch = prompts.PromptBatch(
      tokens=_tokens(number, arm.prompts, arm.prompt_len, vocab=vocab),
      lengths=np.full(arm.prompts, arm.prompt_len, np.int32),
      valid=np.ones(arm.prompts, bool),
      index=np.arange(arm.prompts, dtype=np.int32),
    )
    state, found = iterate(state, batch, number)
    assert found["rollout/length"] == arm.response_len

  return run


def _timed(functions: build.Functions, meter: Meter):
  prepare = functions.prepare
  return dataclasses.replace(
    functions,
    sample=meter.timed("sample", functions.sample),
    score=meter.timed("score", functions.score),
    prepare=prepare and meter.timed("score", prepare),
    learn=meter.timed("learn", functions.learn),
  )


def _busy() -> float:
  """Processor seconds of the whole machine; 0 where nobody says."""
  if not Path("/proc/stat").exists():
    return 0.0
  fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
  user, nice, system, _, _, *others = map(int, fields)
  return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def measure(
  arm: Arm, *, warmup: int, count: int, profile: str = ""
) -> dict[str, Any]:
  """Runs an arm; `profile` is a folder for a trace of one step more.

  Returns:
    `steps`, one for each measured: "spent", {phase: [wall, cpu]} with the whole
    under "all", and "clean", whether other processes had less than 4 % of the
    machine; `peak_bytes` of the process; `device`, its kind, and
    `device_peak_bytes` of its allocator, None where that does not tell; `flops`
    of a step's products by phase; and `policy_bytes`.
  """
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  found = []
  with jax.set_mesh(mesh):
    make = make_rl_iteration if arm.estimator else make_reward_step
    meter = Meter()
    run = make(arm, mesh, meter)
    for number in range(warmup + count):
      meter.spent.clear()
      busy = _busy()
      meter.timed("all", run)(number + 1)
      wall, cpu = meter.spent["all"]
      others = (_busy() - busy - cpu) / (wall * os.cpu_count())
      if number >= warmup:
        spent = {k: list(v) for k, v in meter.spent.items()}
        found.append({"spent": spent, "clean": others <= ELSEWHERE})
    device = mesh.devices.flat[0]
    memory = device.memory_stats() or {}
    if profile:
      with jax.profiler.trace(profile):
        run(warmup + count + 1)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return {
    "steps": found,
    "peak_bytes": usage.ru_maxrss * 1024,
    "device": device.device_kind,
    "device_peak_bytes": memory.get("peak_bytes_in_use"),
    "flops": {k: sum(v.values()) for k, v in meter.flops.items()},
    "policy_bytes": meter.policy_bytes,
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
