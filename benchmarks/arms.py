"""What `lora_vs_full.py` measures: one training step, one RL iteration.

Memory, in the paper's sense, is what the compiler reports for a function:
arguments + outputs + temporaries - donated. While it runs, what is not among
its arguments is in memory as well: the other roles and the optimiser's state.
So, in bytes,

  held  = all roles + the optimiser's state, each buffer once
  phase = held - (those of them that are arguments) + the compiler's peak
  peak  = the largest phase

With LoRA `held` is one base, and adapters and heads of four roles; with full
tuning it is four whole trees. Not counted: the [B, T] arrays that wait between
two phases while a function without them runs, and what the runtime allocates
for itself.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import stages
from configs import reward as reward_config
from configs import rl as rl_config
from perl_jax import params as params_lib
from perl_jax import sharding
from perl_jax.models import presets
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.rollouts import iteration
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class Settings:
  """Shapes of a run, and the number of its steps.

  Attributes:
    preset: Backbone; see perl_jax/models/presets.py.
    vocab: `V`.
    batch: Pairs of the reward step, episodes of the RL iteration.
    prompt_len: `P`.
    response_len: `T`.
    rank: `R` of the adapters, on attention.
    steps: Measured steps of each kind, after `warmup` others.
    warmup: Steps that are not measured; the first one compiles.
    scan_unroll: Layers per iteration of the scan, as in configs/common.py.
    remat: What the backward pass recomputes.
    dtype: Compute dtype.
    seed: Seed of weights and tokens.
  """

  preset: str = "medium"
  vocab: int = 4096
  batch: int = 32
  prompt_len: int = 128
  response_len: int = 64
  rank: int = 8
  steps: int = 5
  warmup: int = 2
  scan_unroll: int = 4
  remat: str = "none"
  dtype: str = "float32"
  seed: int = 0

  def __post_init__(self):
    for field in ("batch", "prompt_len", "response_len", "rank", "steps"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"--{field}={getattr(self, field)} must be at least 1."
        )
    if self.warmup < 1:
      raise ValueError(
        f"--warmup={self.warmup} must be at least 1: the first step compiles."
      )


def configured(
  config: ConfigDict, settings: Settings, tuning: str
) -> ConfigDict:
  """The config of a task with the shapes of this run, in one microbatch."""
  return stages.configured(
    config,
    prompt_len=settings.prompt_len,
    response_len=settings.response_len,
    seed=settings.seed,
    tuning=tuning,
    batch_size=settings.batch,
    microbatches=1,
    **{"lora.rank": settings.rank},
  )


def make_start(settings: Settings) -> Start:
  """A random base of the preset."""
  config = presets.preset(
    settings.preset,
    vocab_size=settings.vocab,
    max_len=settings.prompt_len + settings.response_len,
    scan_unroll=settings.scan_unroll,
    remat=settings.remat,
    dtype=settings.dtype,
  )
  return stages.random_start(config, settings.seed)


def bytes_of(*trees: Any, head_only: bool = False) -> int:
  """Bytes of the trees as arguments of a function.

  Args:
    *trees: Parameters or an optimiser's state.
    head_only: The function reads hidden states alone. An untied `lm_head` is
      then no argument: jit drops what is not read.
  """
  total = sum(params_lib.nbytes(tree) for tree in trees)
  if head_only:
    total -= sum(params_lib.nbytes(t.get("lm_head", ())) for t in trees)
  return total


class RewardArm:
  """The training step of a pairwise reward model."""

  def __init__(self, settings: Settings, start: Start, tuning: str, mesh: Mesh):
    config = configured(reward_config.get_config(), settings, tuning)
    self._stage = stages.RewardStep(config, start, mesh)
    self._batch = sharding.place_batch(
      mesh, stages.random_pairs(config, start.config, mesh)
    )

  def run(self, number: int) -> dict[str, float]:
    """Does one step; returns its seconds."""
    jax.block_until_ready((self._stage.state, self._batch))
    started = time.perf_counter()
    self._stage.run(self._batch, number)
    return {"step": time.perf_counter() - started}

  def costs(self) -> dict[str, Any]:
    """Bytes and shares, after the first step; see `costs`."""
    stage = self._stage
    read = bytes_of(stage.state) + bytes_of(stage.frozen, head_only=True)
    return costs(
      stage,
      held=bytes_of(stage.state, stage.frozen),
      phases={"step": (stage.program, read)},
    )


class RLArm:
  """The RL iteration: sample, score, learn."""

  def __init__(self, settings: Settings, start: Start, tuning: str, mesh: Mesh):
    config = configured(rl_config.get_config(), settings, tuning)
    self._stage = stages.RLIteration(config, start, mesh)
    self._batch = stages.random_prompts(config, settings.vocab)

  def run(self, number: int) -> dict[str, float]:
    """Does one iteration; returns seconds of each phase and of all three."""
    jax.block_until_ready(self._stage.state)
    found = self._stage.run(self._batch, number)
    seconds = {p: float(found[f"seconds/{p}"]) for p in iteration.PHASES}
    return seconds | {"iteration": sum(seconds.values())}

  def costs(self) -> dict[str, Any]:
    """Bytes and shares, after the first iteration; see `costs`."""
    programs, state = self._stage.programs, self._stage.state
    base, anchor = programs.base, programs.anchor.trainable
    reward, policy = programs.reward.trainable, state.trainable["policy"]
    # The log-probs of the anchor read the base's lm_head.
    scored = bytes_of(anchor, base) + bytes_of(reward, head_only=True)
    return costs(
      self._stage,
      held=bytes_of(state, base, anchor, reward),
      phases={
        "sample": (programs.sample, bytes_of(policy, base)),
        "score": (programs.score, scored),
        "learn": (programs.learn, bytes_of(state, base)),
      },
    )


def costs(
  stage: stages.RewardStep | stages.RLIteration,
  *,
  held: int,
  phases: Mapping[str, tuple[Compiled, int]],
) -> dict[str, Any]:
  """What a stage needs, JSON-able; bytes as the module defines them.

  Args:
    stage: The stage; its functions have compiled.
    held: Bytes of all roles and of the optimiser's state.
    phases: By name, the function that runs and how many bytes of `held` are
      among its arguments.
  """
  peaks = {name: fn.peak_bytes for name, (fn, _) in phases.items()}
  needed = {
    name: held - read + peaks[name] for name, (_, read) in phases.items()
  }
  return {
    "trainable_share": stage.summary["trainable_share"],
    "trainable_bytes": params_lib.nbytes(stage.state.trainable),
    "optimizer_bytes": params_lib.nbytes(stage.state.opt_state),
    "held_bytes": held,
    "compiler_peak_bytes": peaks,
    "phase_bytes": needed,
    "peak_bytes": max(needed.values()),
  }
