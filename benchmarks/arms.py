"""What `lora_vs_full.py` measures: one learning step, one RL iteration.

Each is built as its task builds it, from the task's own config, with random
weights and tokens in place of a workdir and a data set.

Memory, in the paper's sense, is what the compiler says a function needs:
arguments + outputs + temporaries - donated. While it runs, what it is not given
is in memory as well: the other roles and the optimiser's state. So

  held  = all roles + the optimiser's state, each buffer once
  phase = held - (what of it the function is given) + the compiler's peak
  peak  = the largest phase

With LoRA `held` is one base, and adapters and heads of four roles; with full
tuning it is four whole trees. Not counted: the [B, T] arrays that wait between
two phases while a function that is not given them runs, and what the runtime
allocates for itself.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import reward as reward_config
from configs import rl as rl_config
from perl_jax import params as params_lib
from perl_jax import roles, sampling, sharding, steps
from perl_jax.data.batches import preferences
from perl_jax.data.batches import prompts as prompts_lib
from perl_jax.models import presets
from perl_jax.tasks.initial import model
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training.compiled import Compiled

PHASES = ("sample", "score", "learn")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Shapes of a run, and how long it measures.

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
    seed: Of weights and tokens.
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


def configure(config: shared.Config, settings: Settings, tuning: str):
  """A task's config with the shapes of this run."""
  config.tuning = tuning
  config.lora.rank = settings.rank
  config.batch_size = settings.batch
  config.microbatches = 1  # the batch is the caller's to choose
  return config


def make_start(settings: Settings) -> model.Start:
  """A random base; there is no text here, hence no tokenizer."""
  config = presets.preset(
    settings.preset,
    vocab_size=settings.vocab,
    max_len=settings.prompt_len + settings.response_len,
    scan_unroll=settings.scan_unroll,
    remat=settings.remat,
    dtype=settings.dtype,
  )
  return model.random_start(config, settings.seed, Path(), "float32")


def random_head(trainable: params_lib.Params, seed: int) -> dict[str, Any]:
  """The tree with a head that does not say 0: rewards should differ."""
  kernel = trainable[params_lib.HEAD]["kernel"]
  drawn = jax.random.normal(jax.random.key(seed), kernel.shape) / kernel.size
  head = trainable[params_lib.HEAD] | {"kernel": drawn}
  return dict(trainable) | {params_lib.HEAD: head}


def bytes_given(*trees: Any, head_only: bool = False) -> int:
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


class RewardStep:
  """The learning step of a pairwise reward model."""

  def __init__(self, settings: Settings, start: model.Start, tuning: str, mesh):
    config = configure(reward_config.get_config(), settings, tuning)
    lora = shared.lora_spec(config)
    trainable, frozen = trainable_lib.trainable_of(
      start, lora=lora, tuning=tuning, seed=config.seed, head="scalar"
    )
    optimizer = shared.make_optimizer(config)
    self._share = shared.share(trainable, frozen)["trainable_share"]
    self._frozen = sharding.place(mesh, frozen)
    self._state = sharding.place(
      mesh, steps.init_state(sharding.place(mesh, trainable), optimizer)
    )
    backbone = roles.Backbone(start.config, lora)
    self._step = Compiled(
      steps.make_train_step(
        steps.pairwise_loss(backbone, max_response=settings.response_len),
        optimizer,
      ),
      name="reward step",
      donate=(0,),
    )
    self._batch = sharding.place_batch(mesh, preference_batch(settings))
    self._key = jax.random.key(settings.seed)

  def run(self, number: int) -> dict[str, float]:
    """One step; seconds."""
    key = jax.random.fold_in(self._key, number)
    jax.block_until_ready((self._state, self._batch, key))
    started = time.perf_counter()
    self._state, found = self._step(self._state, self._frozen, self._batch, key)
    jax.block_until_ready((self._state, found))
    return {"step": time.perf_counter() - started}

  def costs(self) -> dict[str, Any]:
    """Bytes and shares; after the first step."""
    held = bytes_given(self._state, self._frozen)
    given = bytes_given(self._state) + bytes_given(self._frozen, head_only=True)
    return {
      "trainable_share": self._share,
      "trainable_bytes": params_lib.nbytes(self._state.trainable),
      "optimizer_bytes": params_lib.nbytes(self._state.opt_state),
      "held_bytes": held,
      "compiler_peak_bytes": {"step": self._step.peak_bytes},
      "peak_bytes": held - given + self._step.peak_bytes,
    }


class RlIteration:
  """The RL iteration of the task: sample, score, learn."""

  def __init__(self, settings: Settings, start: model.Start, tuning: str, mesh):
    config = configure(rl_config.get_config(), settings, tuning)
    lora = shared.lora_spec(config)
    made = {
      role: trainable_lib.trainable_of(
        start, lora=lora, tuning=tuning, seed=config.seed + i, head=head
      )
      for i, (role, head) in enumerate(
        (("policy", ""), ("value", "scalar"), ("reward", "scalar"))
      )
    }
    policy, frozen = made["policy"]
    estimator = rl_settings.estimator_of(config)
    optimizer = rl_settings.make_optimizer(config)
    self._share = shared.share(policy, frozen)["trainable_share"]
    self._frozen = sharding.place(mesh, frozen)
    self._anchor = sharding.place(mesh, policy)
    trainable = {"policy": policy, "value": made["value"][0]}
    state = steps.init_state(
      sharding.place(mesh, trainable), optimizer, beta=config.beta
    )
    self._state = sharding.place(mesh, state)
    backbone = roles.Backbone(start.config, lora)
    self._reward = rewards.Model(
      backbone,
      sharding.place(mesh, random_head(made["reward"][0], settings.seed)),
      self._frozen,
      members=1,
      shares_base=bool(frozen),
    )
    engine = engine_lib.Engine(
      backbone, sampling_spec(config, settings), backbone
    )
    self._functions = build.make_functions(
      config, estimator, optimizer, engine, self._reward, on_base=bool(frozen)
    )
    self._batch = prompt_batch(settings)
    self._iterate = iteration.Iteration(
      estimator,
      self._functions,
      mesh=mesh,
      base=self._frozen,
      anchor=self._anchor,
      reward=rewards.Rewarder(
        self._reward,
        engine.rewards,
        None,
        unstopped_penalty=config.unstopped_penalty,
      ),
      rows=(),
      key=jax.random.key(settings.seed),
      control=iteration.Control(),
    )

  def run(self, number: int) -> dict[str, float]:
    """One iteration; seconds of each phase and of all three."""
    jax.block_until_ready(self._state)
    self._state, found = self._iterate(self._state, self._batch, number)
    assert found["rollout/stop_rate"] == 0.0
    seconds = {phase: float(found[f"seconds/{phase}"]) for phase in PHASES}
    return seconds | {"iteration": sum(seconds.values())}

  def costs(self) -> dict[str, Any]:
    """Bytes by phase and for the whole; after the first iteration."""
    state, frozen = self._state, self._frozen
    anchor, reward = self._anchor, self._reward.trainable
    held = bytes_given(state, frozen, anchor, reward)
    policy = state.trainable["policy"]
    # The log-probs of the anchor read the base's lm_head.
    asked = bytes_given(anchor, frozen) + bytes_given(reward, head_only=True)
    calls = {
      "sample": (self._functions.sample, bytes_given(policy, frozen)),
      "score": (self._functions.score, asked),
      "learn": (self._functions.learn, bytes_given(state, frozen)),
    }
    phases = {
      phase: held - given + fn.peak_bytes
      for phase, (fn, given) in calls.items()
    }
    return {
      "trainable_share": self._share,
      "trainable_bytes": params_lib.nbytes(state.trainable),
      "optimizer_bytes": params_lib.nbytes(state.opt_state),
      "held_bytes": held,
      "compiler_peak_bytes": {
        phase: fn.peak_bytes for phase, (fn, _) in calls.items()
      },
      "phase_bytes": phases,
      "peak_bytes": max(phases.values()),
    }


def sampling_spec(config, settings: Settings) -> sampling.SamplingSpec:
  """The task's sampling, without a token that could stop a response."""
  return sampling.SamplingSpec(
    response_len=settings.response_len,
    stop_ids=(settings.vocab,),
    **config.sampling.to_dict(),
  )


def _tokens(settings: Settings, seed: int, length: int) -> np.ndarray:
  generator = np.random.default_rng((settings.seed, seed))
  shape = settings.batch, length
  return generator.integers(settings.vocab, size=shape).astype(np.int32)


def preference_batch(settings: Settings) -> preferences.PreferenceBatch:
  """Pairs of full length; the two sides share the prompt."""
  prompts = _tokens(settings, 0, settings.prompt_len)
  lengths = np.full(
    settings.batch, settings.prompt_len + settings.response_len, np.int32
  )
  chosen, rejected = (
    np.hstack([prompts, _tokens(settings, side, settings.response_len)])
    for side in (1, 2)
  )
  return preferences.PreferenceBatch(
    chosen_tokens=chosen,
    chosen_lengths=lengths,
    rejected_tokens=rejected,
    rejected_lengths=lengths,
    prompt_lengths=lengths - settings.response_len,
    valid=np.ones(settings.batch, bool),
    index=np.arange(settings.batch, dtype=np.int32),
  )


def prompt_batch(settings: Settings) -> prompts_lib.PromptBatch:
  """Prompts of full length."""
  return prompts_lib.PromptBatch(
    tokens=_tokens(settings, 3, settings.prompt_len),
    lengths=np.full(settings.batch, settings.prompt_len, np.int32),
    valid=np.ones(settings.batch, bool),
    index=np.arange(settings.batch, dtype=np.int32),
  )
