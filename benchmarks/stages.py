"""A reward model's training step and an RL iteration without data or workdir.

Both are built by the functions that the tasks call, from the task's own config.
Weights and tokens are random, every sequence has its full length, and no
response stops early: the stop token is one that the model cannot sample.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.data import packed_loader
from perl_jax.data.batches.packed_responses import PackedResponses
from perl_jax.data.batches.preferences import EncodedPreference
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.models.config import ModelConfig
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.settings import defaults, shared, streams
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.training import batching, begin
from perl_jax.tasks.training.compiled import Compiled
from perl_jax.tasks.training.timing import Clock


def configured(
  config: ConfigDict, *, prompt_len: int, response_len: int, **fields: Any
) -> ConfigDict:
  """The config of a task with other lengths and other fields.

  Args:
    config: From `configs.reward` or `configs.rl`; it is changed. Fields that
      depend on the backbone get the value of one trained from scratch.
    prompt_len: Tokens of a prompt, `P`.
    response_len: Tokens of a response, `T`.
    **fields: Further values by dotted name.
  """
  fields |= {
    "data.prompt_len": prompt_len,
    "data.response_len": response_len,
    "data.max_len": prompt_len + response_len,
  }
  config.update_from_flattened_dict(fields)
  return defaults.from_scratch(config)


def random_start(
  model: ModelConfig, seed: int = 0, dtype: str = "float32"
) -> model_lib.Start:
  """A base with random weights. It has no tokenizer, since there is no text."""
  return model_lib.random_start(model, seed, Path(), dtype)


class RewardStep:
  """The training step of a pairwise reward model, or of an ensemble.

  Attributes:
    summary: What is trained, in numbers; see `shared.share`.
    frozen: The base on the mesh; empty with full tuning.
    state: The state after the last step.
    program: The compiled step.
  """

  def __init__(
    self,
    config: ConfigDict,
    start: model_lib.Start,
    mesh: Mesh,
    max_response: int | None = None,
  ):
    """Places the model on the mesh; nothing compiles yet.

    Args:
      config: Of the reward task.
      start: The base.
      mesh: Mesh to train on.
      max_response: At least the number of response tokens of any row; None is
        `config.data.response_len`.
    """
    optimizer = shared.make_optimizer(config)
    prepared = _prepared(
      _role(config, start, config.seed, config.head, config.ensemble), "reward"
    )
    self.summary = prepared.summary
    self.frozen = sharding.place(mesh, prepared.role.frozen, share=True)
    self.state = prepared.state(mesh, optimizer)
    # As `tasks.reward.make_train_step`, whose module imports scikit-learn: that
    # would count in the memory of this process.
    loss = steps.pairwise_loss(
      prepared.role.backbone,
      max_response=max_response or config.data.response_len,
    )
    self.program = Compiled(
      reward_settings.make_step(config, loss, optimizer.transformation),
      name="reward step",
      donate=(0,),
    )
    self._key = streams.key_of(config.seed, streams.Stream.REWARD)

  def run(self, batch: Any, number: int) -> None:
    """Does a step on a batch that is on the mesh, and waits for it."""
    key = jax.random.fold_in(self._key, number)
    self.state, found = self.program(self.state, self.frozen, batch, key)
    jax.block_until_ready((self.state, found))


class RLIteration:
  """The RL iteration of `tasks/rl.py` with a random reward model.

  Attributes:
    summary: What the policy trains, in numbers; see `shared.share`.
    programs: The compiled functions.
    state: The state after the last iteration.
  """

  def __init__(
    self,
    config: ConfigDict,
    start: model_lib.Start,
    mesh: Mesh,
    clock: Clock = time.perf_counter,
    sample: Any = None,
    stops: tuple[int, ...] = (),
  ):
    """Places the roles on the mesh; nothing compiles yet.

    Args:
      config: Of the RL task.
      start: The base of all roles.
      mesh: Mesh to train on.
      clock: Returns seconds; `Iteration` reads it before the first phase and
        after each.
      sample: In place of the sampler; none of its responses has a stop token.
      stops: Tokens that end a response; without any, none ends early.
    """
    self._stops = stops
    # One that is not in the vocabulary is never sampled.
    never = (start.config.vocab_size,)
    settings = _stopping(rl_settings.read(config), stops or never)
    policy = _role(config, start, config.seed)
    beside = {}
    if settings.estimator.uses_value:
      beside["value"] = initial_roles.initial_value(config, start, None)
    prepared = _prepared(policy, "policy", **beside)
    reward = _role(config, start, config.seed + 2, "scalar")
    placed = initial_roles.place(
      mesh, {"anchor": policy, "reward": _with_random_head(reward, config.seed)}
    )
    self.summary = prepared.summary
    self.state = prepared.state(mesh, settings.optimizer, beta=settings.beta)
    self.programs = build.build(settings, placed["anchor"], placed["reward"])
    if sample is not None:
      self.programs = dataclasses.replace(self.programs, sample=sample)
    self._iterate = iteration.Iteration(
      self.programs,
      rewards.Rewarder(
        placed["reward"],
        self.programs.engine.rewards,
        None,
        unstopped_penalty=config.unstopped_penalty,
      ),
      mesh=mesh,
      rows=(),
      key=streams.key_of(config.seed, streams.Stream.RL),
      clock=clock,
    )

  def run(self, batch: PromptBatch, number: int) -> dict[str, Any]:
    """Does an iteration on a batch on the host; returns its metrics."""
    self.state, found = self._iterate(self.state, batch, number)
    assert self._stops or found["rollout/stop_rate"] == 0.0
    return found

  @property
  def compiled(self) -> list[Compiled]:
    """The functions that an iteration runs."""
    found = self.programs
    functions = found.sample, found.score, found.prepare, found.learn
    return [function for function in functions if function is not None]


def _role(config, start, seed, head="", members=1) -> roles.Role:
  return trainable_lib.trainable_role(
    start,
    lora=shared.lora_spec(config),
    tuning=config.tuning,
    seed=seed,
    head=head,
    members=members,
  )


def _prepared(role: roles.Role, name: str, **beside: Any) -> begin.Prepared:
  summary = shared.share(role.trainable, role.frozen)
  return begin.Prepared(role, {name: role.trainable, **beside}, summary)


def _with_random_head(role: roles.Role, seed: int) -> roles.Role:
  """The role with a head that is not 0, so that its rewards differ."""
  head = role.trainable[params_lib.HEAD]
  kernel = head["kernel"]
  drawn = jax.random.normal(jax.random.key(seed), kernel.shape) / kernel.size
  head = {params_lib.HEAD: head | {"kernel": drawn}}
  return dataclasses.replace(role, trainable=dict(role.trainable) | head)


def _stopping(
  settings: rl_settings.RLSettings, stops: tuple[int, ...]
) -> rl_settings.RLSettings:
  """The settings with these stop tokens."""
  sampling, rollout = (
    dataclasses.replace(spec, stop_ids=stops)
    for spec in (settings.sampling, settings.rollout)
  )
  return dataclasses.replace(settings, sampling=sampling, rollout=rollout)


def random_pairs(
  config: ConfigDict, model: ModelConfig, mesh: Mesh
) -> PackedResponses:
  """Pairs of full length, packed, on the host.

  Args:
    config: Its batch size, lengths, microbatches and seed are those of the
      batch.
    model: Model that reads them.
    mesh: Mesh that the batch is placed on.
  """
  vocab = model.vocab_size
  rows, response_len = config.batch_size, config.data.response_len
  prompts = _tokens((config.seed, 0), rows, config.data.prompt_len, vocab)
  chosen, rejected = (
    np.hstack([prompts, _tokens((config.seed, k), rows, response_len, vocab)])
    for k in (1, 2)
  )
  pairs = [
    EncodedPreference(*sides, config.data.prompt_len, i)
    for i, sides in enumerate(
      zip(chosen.tolist(), rejected.tolist(), strict=True)
    )
  ]
  shards = sharding.held_shards(mesh)
  layout = batching.Packing.of(model, targets=False).layout("preferences", 0)
  longest = config.data.prompt_len + response_len
  pack = packed_loader.train_packer(
    layout,
    pairs,
    [longest] * rows,
    rows,
    (longest,),
    config.microbatches * shards[1],
    *shards,
  )
  return pack(pairs, longest, rows)


def random_prompts(
  config: ConfigDict, vocab: int, number: int = 0
) -> PromptBatch:
  """Prompts of full length, on the host.

  Args:
    config: Its batch size, length and seed are those of the batch.
    vocab: Number of token ids.
    number: Batches of different numbers differ.
  """
  rows, length = config.batch_size, config.data.prompt_len
  return PromptBatch(
    tokens=_tokens((config.seed, 3, number), rows, length, vocab),
    lengths=np.full(rows, length, np.int32),
    valid=np.ones(rows, bool),
    index=np.arange(rows, dtype=np.int32),
  )


def _tokens(
  seed: tuple[int, ...], rows: int, length: int, vocab: int
) -> np.ndarray:
  generator = np.random.default_rng(seed)
  return generator.integers(vocab, size=(rows, length)).astype(np.int32)
