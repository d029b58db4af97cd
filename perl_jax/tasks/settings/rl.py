"""From an RL config to its estimator, optimiser and value model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from perl_jax import sampling, steps
from perl_jax.objectives import ensembles
from perl_jax.tasks.settings import shared


def estimator_of(config: shared.Config) -> steps.Estimator:
  """The estimator that `config.estimator` names, with what goes with it.

  Raises:
    ValueError: A choice is unknown, or two of them do not go together: it says
      why, and what does.
  """
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


def rollout_spec(
  config: shared.Config, spec: sampling.SamplingSpec
) -> sampling.SamplingSpec:
  """How responses are drawn for training: `spec` in groups, and in slots.

  Raises:
    ValueError: `config.rollouts` does not fit the groups.
  """
  fields = config.rollouts.to_dict() | {"group": config.samples_per_prompt}
  try:
    return dataclasses.replace(spec, **fields)
  except ValueError as error:
    raise ValueError(f"config.rollouts.{error}") from error


def check(config: shared.Config, mesh: jax.sharding.Mesh) -> None:
  """Checks what only RL asks for.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  shared.check_counts(config, mesh)
  check_reward(config)
  estimator = estimator_of(config)
  if not config.reward.init and not config.reward.fn:
    raise ValueError(
      "config.reward.init is empty, and config.reward.fn too: RL needs a reward"
      " model or function. Train one with configs/reward.py and give its"
      " workdir, or name a function 'package.module:function'."
    )
  if not 0.0 <= config.beta <= 1.0:
    raise ValueError(f"config.beta={config.beta} must be in [0, 1].")
  if config.kl.target < 0 or (config.kl.target and not config.beta):
    raise ValueError(
      f"config.kl.target={config.kl.target} with config.beta={config.beta}:"
      " give a target above 0 nats and a beta to start from, or 0 for a fixed"
      " beta."
    )
  episodes = config.batch_size * estimator.group
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
      " are for evaluation."
    )
  if not 0 <= config.value.warmup_steps < config.steps:
    raise ValueError(
      f"config.value.warmup_steps={config.value.warmup_steps} must be in [0,"
      f" config.steps={config.steps}): the policy learns after them."
    )
  for field, parts in (
    ("ppo.minibatches", config.ppo.minibatches),
    (
      "microbatches (of each of ppo.minibatches)",
      config.ppo.minibatches * config.microbatches,
    ),
    ("score_microbatches", config.score_microbatches),
  ):
    if parts < 1 or config.batch_size % parts:
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


def make_optimizer(config: shared.Config) -> optax.GradientTransformation:
  """A chain for each of the roles: one's gradient never clips the other's.

  The value model has a learning rate of its own, and `value.warmup_steps`
  iterations before the first of the policy: until it explains something of the
  returns, the policy's gradient is mostly that of the prompts' difficulty.
  """
  estimator, value = estimator_of(config), config.value
  total = config.steps * estimator.updates
  if not estimator.uses_value:
    return shared.make_optimizer(config, total_steps=total)
  policy = shared.make_optimizer(
    config,
    total_steps=total,
    delay_steps=value.warmup_steps * estimator.updates,
  )
  own = shared.make_optimizer(
    config, total_steps=total, learning_rate=value.learning_rate
  )
  roles_ = {"policy": policy, "value": own}
  return optax.partition(roles_, {name: name for name in roles_})


# "average" makes one model of the members when they are loaded.
COMBINATIONS = (*ensembles.COMBINATIONS, "average")


def check_reward(config: shared.Config) -> None:
  """Checks the fields of `config.reward` that say how it is used.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  reward = config.reward
  if reward.combine not in COMBINATIONS:
    raise ValueError(
      f"config.reward.combine={reward.combine!r}: choose one of {COMBINATIONS}."
    )
  if not reward.init and reward.combine != "mean":
    raise ValueError(
      f"config.reward.combine={reward.combine!r}, but config.reward.init is"
      " empty: there is no model to combine. Set it to 'mean'."
    )
  if reward.std_weight < 0:
    raise ValueError(
      f"config.reward.std_weight={reward.std_weight} must be at least 0: what"
      " the members disagree on is worth less, not more."
    )
  if reward.fn and reward.fn_weight == 0:
    raise ValueError(
      f"config.reward.fn_weight=0: {reward.fn!r} would change nothing. Set it"
      " above 0, or config.reward.fn to ''."
    )


def reward_options(config: shared.Config) -> Mapping[str, Any]:
  """Arguments of `Rewarder` that are plain fields of `config.reward`."""
  names = ("fn_weight", "combine", "std_weight")
  return {name: config.reward[name] for name in names}
