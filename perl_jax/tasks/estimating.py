"""From an RL config to its estimator, optimiser and value model."""

import dataclasses
from typing import Any

import jax
import optax

from perl_jax import params as params_lib
from perl_jax import sampling, steps
from perl_jax.tasks import casting, rewarding, setup
from perl_jax.tasks import start as start_lib


def estimator_of(config: setup.Config) -> steps.Estimator:
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
  config: setup.Config, spec: sampling.SamplingSpec
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


def check(config: setup.Config, mesh: jax.sharding.Mesh) -> None:
  """Checks what only RL asks for.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  setup.check_counts(config, mesh)
  rewarding.check(config)
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
    ("microbatches", config.ppo.minibatches * config.microbatches),
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


def make_optimizer(config: setup.Config) -> optax.GradientTransformation:
  """A chain for each of the roles: one's gradient never clips the other's.

  The value model has a learning rate of its own, and `value.warmup_steps`
  iterations before the first of the policy: until it explains something of the
  returns, the policy's gradient is mostly that of the prompts' difficulty.
  """
  estimator, value = estimator_of(config), config.value
  total = config.steps * estimator.updates
  if not estimator.uses_value:
    return setup.make_optimizer(config, total_steps=total)
  policy = setup.make_optimizer(
    config,
    total_steps=total,
    delay_steps=value.warmup_steps * estimator.updates,
  )
  own = setup.make_optimizer(
    config, total_steps=total, learning_rate=value.learning_rate
  )
  roles_ = {"policy": policy, "value": own}
  return optax.partition(roles_, {name: name for name in roles_})


def initial_value(
  config: setup.Config,
  start: start_lib.Start,
  reward_cast: casting.Cast | None,
  lora: Any,
) -> params_lib.Params:
  """Adapter and head that the value model starts from.

  "policy": the policy's start with a head of zeros, as in the paper.
  "reward": the reward model's adapter and head.
  """
  if config.value.init == "policy":
    trainable, _ = start_lib.trainable_of(
      dataclasses.replace(start, head=None),
      lora=lora,
      tuning=config.tuning,
      seed=config.seed + 1,
      head="scalar",
    )
    return trainable
  if config.value.init != "reward":
    raise ValueError(
      f"config.value.init={config.value.init!r}: choose 'policy' or 'reward'."
    )
  if reward_cast is None:
    raise ValueError(
      "config.value.init='reward' needs a reward model, but config.reward.init"
      " is empty. Set config.value.init='policy'."
    )
  if reward_cast.members > 1:
    raise ValueError(
      "config.value.init='reward' needs one reward model, but"
      f" config.reward.init holds {reward_cast.members}. Set"
      " config.value.init='policy'."
    )
  if config.tuning == "lora" and not reward_cast.shares_base:
    raise ValueError(
      "config.value.init='reward' needs a reward model on the policy's base,"
      " where the value model stands; config.reward.init has another. Set"
      " config.value.init='policy'."
    )
  if config.tuning == "lora" and not lora.fits(reward_cast.backbone.lora):
    raise ValueError(
      "config.value.init='reward' needs a reward model with the policy's"
      f" lora {lora}; it has {reward_cast.backbone.lora}."
    )
  head = dict(reward_cast.trainable[params_lib.HEAD])
  head.pop("likelihood", None)  # a state has no response to be likely
  return dict(reward_cast.trainable) | {params_lib.HEAD: head}
