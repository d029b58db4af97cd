"""What a role trains: an adapter or the whole model, and a head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import streams


def new_head(config: ModelConfig, head: str) -> dict[str, Any]:
  """A head of a kind in `settings.reward.HEADS`; it returns 0 for any input."""
  return roles.init_head(config, likelihood=head == "likelihood")


def _head_of(start: Start, head: str) -> dict[str, Any]:
  fresh, found = new_head(start.config, head)[params_lib.HEAD], {}
  if start.role.head is not None:
    found = start.role.head[params_lib.HEAD]
  if found.keys() - fresh.keys():
    raise ValueError(
      f"The earlier stage has a head with {sorted(found)}, this config asks"
      f" for head={head!r}, which has {sorted(fresh)}. Set config.head to"
      " 'likelihood'."
    )
  return {params_lib.HEAD: fresh | found}


def trainable_role(
  start: Start,
  *,
  lora: LoraSpec,
  tuning: str,
  seed: int,
  head: str = "",
  members: int = 1,
) -> roles.Role:
  """The role that is trained from a start, split into trainable and frozen.

  With LoRA its adapter is the start's, or a new one. With full tuning its tree
  is the base, an adapter of the start merged into it.

  Args:
    start: The base, adapter and head that the role starts from.
    lora: Shape of the adapter. Dropout may differ from the start's: it is not
      a shape.
    tuning: "lora" or "full".
    seed: Seed of a new adapter.
    head: One of `settings.reward.HEADS`, or "" for a role without one. It is
      the start's, or zero where the start has none.
    members: Number of models to train at once on one base. Member k starts as
      a run with the seed `seed + k` would; with one member nothing is stacked.

  Raises:
    ValueError: The start has an adapter of another shape than `lora`, a base of
      too few bits to be trained, or an ensemble of another size; or an ensemble
      is asked for with full tuning.
  """
  if start.role.members not in (1, members):
    raise ValueError(
      f"The earlier stage has an ensemble of {start.role.members}, this config"
      f" asks for config.ensemble={members}. Set it to {start.role.members}, or"
      " start from the stage before it."
    )
  backbone = roles.Backbone(start.config, lora)
  if members == 1:
    return roles.Role(backbone, *_split(start, lora, tuning, seed, head))
  if tuning != "lora":
    raise ValueError(
      f"config.ensemble={members} with config.tuning={tuning!r}: the members"
      " share one backbone. Use config.tuning='lora'."
    )
  made = [
    _split(member_of(start, k), lora, tuning, seed + k, head)
    for k in range(members)
  ]
  stacked = params_lib.stack([trainable for trainable, _ in made])
  return roles.Role(backbone, stacked, made[0][1], members)


def _split(
  start: Start, lora: LoraSpec, tuning: str, seed: int, head: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(trainable, frozen) of one model."""
  with_head = _head_of(start, head) if head else {}
  base, adapter = start.role.frozen, start.role.adapter
  if tuning == "full":
    if params_lib.is_quantized(base):
      raise ValueError(
        f"config.tuning='full' trains the base, which is kept in"
        f" {start.source['dtype']}: set config.base_dtype to 'float32' or"
        " 'bfloat16', or config.tuning to 'lora'."
      )
    if adapter is not None:
      base = params_lib.merge(base, adapter, start.role.lora)
    # What is trained is kept in float32, whatever it was read in.
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
    return params_lib.partition(base | with_head, tuning)
  if adapter is None:
    key = streams.key_of(seed, streams.Stream.ADAPTER)
    adapter = jax.jit(roles.init_adapter, static_argnums=(1, 2))(
      key, start.config, lora
    )
  elif not lora.fits(start.role.lora):
    raise ValueError(
      f"The earlier stage has an adapter {start.role.lora}, this"
      f" config asks for {lora}. Set config.lora to the earlier values, or"
      " start anew from the stage before it."
    )
  tree = params_lib.combine(adapter, base) | with_head
  # The very base, so that roles on it can be seen to share it.
  return params_lib.partition(tree, tuning)[0], base


def member_of(start: Start, number: int) -> Start:
  """A start with one member of its ensemble; a single model as it is."""
  role = start.role
  if role.members == 1:
    return start
  trainable = params_lib.member(role.trainable, number)
  return start.with_adapter(trainable, role.lora)


def averaged(start: Start) -> Start:
  """An ensemble as one reward model; see `params.average_members`."""
  role = start.role
  if role.members == 1:
    return start
  return start.with_adapter(
    *params_lib.average_members(role.trainable, role.lora)
  )


def without_head(start: Start) -> Start:
  """The same start with no scalar head."""
  body = {k: v for k, v in start.role.trainable.items() if k != params_lib.HEAD}
  role = dataclasses.replace(start.role, trainable=body)
  return dataclasses.replace(start, role=role)
