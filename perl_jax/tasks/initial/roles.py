"""Casts the roles of an RL run or an evaluation on one backbone."""

import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import shared


@dataclasses.dataclass(frozen=True)
class Cast:
  """A role that is only run: its model and its two trees, on the host.

  Attributes:
    backbone: Model and adapter shape.
    trainable: Adapter and head, or the whole tree.
    shares_base: Whether the role stands on the policy's base; if not,
      `trainable` and `own_base` are all there is of it.
    own_base: Base of a role that does not share, else empty.
    members: Reward models in it; above 1 the leaves of `trainable` are stacked.
  """

  backbone: roles.Backbone
  trainable: params_lib.Params
  shares_base: bool
  own_base: params_lib.Params
  members: int = 1


def as_trained(start: Start, known: Start | None) -> Cast:
  """What a stage trained, to be run as it is.

  Args:
    start: From `stage.load`.
    known: The start whose base is already there.
  """
  head = start.head or {}
  lora = start.lora or LoraSpec()
  backbone = roles.Backbone(start.config, lora)
  if start.adapter is None:
    shares = known is not None and start.fingerprint == known.fingerprint
    if shares:
      return Cast(backbone, dict(head), True, {})
    return Cast(backbone, start.base | head, False, {})
  shares = known is not None and start.base is known.base
  return Cast(
    backbone,
    start.adapter | head,
    shares,
    {} if shares else start.base,
    start.ensemble,
  )


def as_combined(start: Start, config: shared.Config) -> Start:
  """A reward model as `config.reward.combine` asks for its members.

  Raises:
    ValueError: There is one model, and nothing to combine.
  """
  combine = config.reward.combine
  if start.ensemble == 1 and combine != "mean":
    raise ValueError(
      f"config.reward.combine={combine!r}, but config.reward.init="
      f"{config.reward.init!r} holds one reward model. Train several with"
      " --config.ensemble=4 of configs/reward.py, or set it to 'mean'."
    )
  return trainable_lib.averaged(start) if combine == "average" else start


def load_reward(config: shared.Config, policy: Start, mesh: Mesh) -> Cast:
  """The reward model of `config.reward`, on the policy's base or its own.

  It stands on the policy's if it was trained there. Any other base, such as
  that of a checkpoint of others (`AutoModelForSequenceClassification`), is
  loaded beside it.

  Raises:
    ValueError: It has no head, another tokenizer, or less room than the policy
      is given.
  """
  init = config.reward.init
  start = restore.load(
    init,
    config.reward.checkpoint,
    "reward",
    "reward.init",
    known=policy,
    outside=model.outside(config, mesh),
  )
  if start.head is None:
    raise ValueError(
      f"config.reward.init={init!r} has no scalar head: it is no reward"
      " model. Train one with configs/reward.py."
    )
  require_same_tokenizer(policy.tokenizer, start.tokenizer)
  cast = as_trained(as_combined(start, config), policy)
  if not cast.shares_base:
    logging.info(
      "reward: stands on a base of its own, fingerprint %s in %s (the"
      " policy's is %s in %s): %.1f MiB more. A reward model that is trained"
      " from the policy's start, on a base in the same dtype, shares it.",
      start.fingerprint[:12],
      start.record["dtype"],
      policy.fingerprint[:12],
      policy.record["dtype"],
      params_lib.nbytes(cast.own_base or cast.trainable) / 2**20,
    )
  return cast


def require_same_tokenizer(first: Path, second: Path) -> None:
  """Checks that two stages cut text into the same tokens.

  Raises:
    ValueError: `tokenizer.json` differs.
  """
  contents = [(p / "tokenizer.json").read_bytes() for p in (first, second)]
  if contents[0] != contents[1]:
    raise ValueError(
      f"{first} and {second} are different tokenizers; policy and reward"
      " model must share one. Train them from the same start."
    )


def initial_value(
  config: shared.Config,
  start: model.Start,
  reward_cast: Cast | None,
  lora: Any,
) -> params_lib.Params:
  """Adapter and head that the value model starts from.

  "policy": the policy's start with a head of zeros, as in the paper.
  "reward": the reward model's adapter and head.
  """
  if config.value.init == "policy":
    trainable, _ = trainable_lib.trainable_of(
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
