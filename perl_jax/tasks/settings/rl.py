"""Settings of the RL stage, read from its config once."""

import dataclasses
from collections.abc import Sequence

import jax
import optax

from perl_jax import sampling, steps
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.settings import (
  config_files,
  judge,
  reward_functions,
  shared,
)
from perl_jax.tasks.settings import reward as reward_settings


@dataclasses.dataclass(frozen=True)
class RLSettings:
  """What an RL run is made of, checked.

  Attributes:
    estimator: Estimator of the policy gradient.
    optimizer: Optimiser of all roles that are trained.
    sampling: How an evaluation samples a policy: one response to a prompt.
    rollout: How a training iteration samples: `sampling` in groups, and with
      continuous batching if it is asked for.
    beta: Weight of the KL to the anchor at the start.
    buckets: Lengths that responses are padded to when they are scored and
      learned from, in ascending order; the last is `data.response_len`.
    by_length: Whether the rows of a batch are sorted into microbatches by their
      longest response, and each microbatch is padded to a bucket of its own.
    kl_target: KL in nats per response that beta follows; 0 keeps beta fixed.
    kl_horizon: Number of responses in which beta may change by a fifth; see
      `objectives.kl.adapt_beta`.
    kl_waits: First iterations, in which the value model learns alone: beta
      stays, for the KL of a policy that does not move says nothing of it.
    microbatches: Parts of a minibatch whose gradients are accumulated.
    score_microbatches: Parts of a batch that are scored one after the other.
  """

  estimator: steps.Estimator
  optimizer: shared.Optimizer
  sampling: sampling.SamplingSpec
  rollout: sampling.SamplingSpec
  buckets: tuple[int, ...]
  by_length: bool
  beta: float
  kl_target: float
  kl_horizon: int
  kl_waits: int
  microbatches: int
  score_microbatches: int

  def with_stops(
    self, tokenization: tokenization_lib.Tokenization
  ) -> "RLSettings":
    """The settings with a tokenizer's stop tokens and padding."""
    stops = {
      "stop_ids": tokenization.stop_ids,
      "pad_id": tokenization.pad_id,
    }
    return dataclasses.replace(
      self,
      sampling=dataclasses.replace(self.sampling, **stops),
      rollout=dataclasses.replace(self.rollout, **stops),
    )


def read(config: shared.Config) -> RLSettings:
  """The settings of a config.

  They sample with a placeholder for the stop token; see
  `RLSettings.with_stops`.

  Raises:
    ValueError: A choice is unknown, or two of them do not go together. It names
      the field, the reason and the way out.
  """
  estimator = _estimator(config)
  spec = sampling.SamplingSpec(
    response_len=config.data.response_len,
    stop_ids=(0,),
    **config.sampling.to_dict(),
  )
  rollout = config.rollouts.to_dict() | {"group": config.samples_per_prompt}
  buckets = _buckets(rollout.pop("buckets"), config.data.response_len)
  by_length = rollout.pop("by_length")
  try:
    rollout_spec = dataclasses.replace(spec, **rollout)
  except ValueError as error:
    # Each of its messages begins with the name of a field.
    raise ValueError(f"config.rollouts.{error}") from error
  return RLSettings(
    estimator=estimator,
    optimizer=optimizer_of(config, estimator),
    sampling=spec,
    rollout=rollout_spec,
    buckets=buckets,
    by_length=by_length,
    beta=config.beta,
    kl_target=config.kl.target,
    kl_horizon=config.kl.horizon,
    kl_waits=config.value.warmup_steps if estimator.uses_value else 0,
    microbatches=config.microbatches,
    score_microbatches=config.score_microbatches,
  )


def _buckets(given: Sequence[int], longest: int) -> tuple[int, ...]:
  """`given` and the longest; see `shared.response_buckets` for ().

  Raises:
    ValueError: One is longer than the longest response.
  """
  if given and max(given) > longest:
    raise ValueError(
      f"config.rollouts.buckets={tuple(given)!r}: responses have at most"
      f" data.response_len={longest} tokens. Leave out what is longer."
    )
  if not given:
    return shared.response_buckets(longest)
  return (*sorted({*given} - {longest}), longest)


def _estimator(config: shared.Config) -> steps.Estimator:
  try:
    return steps.Estimator(
      name=config.estimator,
      group=config.samples_per_prompt,
      kl=config.kl.estimator,
      kl_place=config.kl.place,
      reduction=config.reduction,
      whiten=config.whiten,
      entropy_coef=config.entropy_coef,
      value_coef=config.value_coef,
      **config.ppo.to_dict(),
    )
  except ValueError as error:
    # Each of its messages begins with the name of a field.
    raise ValueError(f"config.{error}") from error


def optimizer_of(
  config: shared.Config,
  estimator: steps.Estimator,
  values: steps.Values | None = None,
) -> shared.Optimizer:
  """A chain for each role, so that one's gradient never clips the other's.

  The value model has its own learning rate, and trains alone in the first
  `value.warmup_steps` iterations: until it explains some of the returns, the
  policy's gradient mostly follows how difficult the prompts are.

  Args:
    config: Config of the stage.
    estimator: Static choices of the update.
    values: See `shared.make_optimizer`.
  """
  total, value = config.steps * estimator.updates, config.value
  if not estimator.uses_value:
    return shared.make_optimizer(config, total_steps=total, values=values)
  policy = shared.make_optimizer(
    config,
    total_steps=total,
    zero_steps=value.warmup_steps * estimator.updates,
    values=values,
  )
  own = shared.make_optimizer(
    config, total_steps=total, section="value", values=values
  )
  by_role = {"policy": policy.transformation, "value": own.transformation}
  return shared.Optimizer(
    optax.partition(by_role, {name: name for name in by_role}),
    {
      "learning_rate": policy.learning_rates["learning_rate"],
      "value_learning_rate": own.learning_rates["learning_rate"],
    },
  )


def check(
  config: shared.Config, settings: RLSettings, mesh: jax.sharding.Mesh
) -> None:
  """Checks what a run needs beyond what `read` does.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  shared.check_counts(config, mesh)
  check_reward(config)
  judge.check_beside_reward(config)
  if not config.reward.init and not config.reward.fn:
    raise ValueError(
      "config.reward.init is empty, and config.reward.fn too: RL needs a reward"
      f" model or function. Train one with {config_files.called('reward')} and"
      " give its workdir, or name a function 'package.module:function'."
    )
  if config.kl.target and not config.beta:
    raise ValueError(
      f"config.kl.target={config.kl.target} with config.beta={config.beta}:"
      " give a beta to start from, or a target of 0 for a fixed beta."
    )
  episodes = config.batch_size * settings.estimator.group
  if config.kl.target and config.kl.horizon < episodes:
    raise ValueError(
      f"config.kl.horizon={config.kl.horizon} must be at least the"
      f" {episodes} responses of an iteration: beta would swing."
    )
  if config.sampling.top_k or config.sampling.top_p < 1.0:
    raise ValueError(
      f"config.sampling.top_k={config.sampling.top_k},"
      f" top_p={config.sampling.top_p}: the policy gradient is that of the"
      " sampled distribution, which these cut. Use top_k=0 and top_p=1; they"
      " are for configs/generate.py."
    )
  uses_value = settings.estimator.uses_value
  if uses_value and config.value.warmup_steps >= config.steps:
    raise ValueError(
      f"config.value.warmup_steps={config.value.warmup_steps} must be below"
      f" config.steps={config.steps}: the policy learns after them."
    )
  for field, parts in (
    ("ppo.minibatches", config.ppo.minibatches),
    (
      "microbatches (of each of ppo.minibatches)",
      config.ppo.minibatches * config.microbatches,
    ),
    ("score_microbatches", config.score_microbatches),
  ):
    if config.batch_size % parts:
      raise ValueError(
        f"config.batch_size={config.batch_size} prompts do not divide into"
        f" {parts} parts: change it or config.{field}."
      )
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if config.batch_size // config.ppo.minibatches % shards:
    raise ValueError(
      f"config.batch_size={config.batch_size} in"
      f" config.ppo.minibatches={config.ppo.minibatches} parts does not"
      f" divide over mesh.data * mesh.fsdp = {shards} devices; change them or"
      " the mesh."
    )


def check_reward(config: shared.Config) -> None:
  """Checks the fields of `config.reward` that say how it is used.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  reward = config.reward
  reward_settings.check_reading(reward, "config.reward")
  if not reward.init and reward.combine != "mean":
    raise ValueError(
      f"config.reward.combine={reward.combine!r}, but config.reward.init is"
      " empty: there is no model to combine. Set it to 'mean'."
    )
  if reward_functions.terms_of(reward.fn) and reward.fn_weight == 0:
    raise ValueError(
      f"config.reward.fn_weight=0: {reward.fn!r} would change nothing. Set it"
      " above 0, or config.reward.fn to ''."
    )
