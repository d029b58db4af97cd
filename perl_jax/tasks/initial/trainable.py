"""What a role trains: an adapter or the whole model, and a head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import model

HEADS = ("scalar", "likelihood")  # of a reward model; `roles.response_scores`


def new_head(config: ModelConfig, head: str) -> dict[str, Any]:
  """A head that says 0 everywhere, of one of the kinds `HEADS`."""
  return roles.init_head(config, likelihood=head == "likelihood")


def _head_of(start: model.Start, head: str) -> dict[str, Any]:
  fresh, found = new_head(start.config, head)[params_lib.HEAD], {}
  if start.head is not None:
    found = start.head[params_lib.HEAD]
  if found.keys() - fresh.keys():
    raise ValueError(
      f"The earlier stage has a head with {sorted(found)}, this config asks"
      f" for head={head!r}, which has {sorted(fresh)}. Set config.head to"
      " 'likelihood'."
    )
  return {params_lib.HEAD: fresh | found}


def trainable_of(
  start: model.Start, *, lora: LoraSpec, tuning: str, seed: int, head: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(trainable, frozen) of a role that begins at `start`.

  With LoRA: the start's adapter, or a new one. With full tuning: the base, an
  adapter of the start merged into it. The head, one of `HEADS` or "" for none,
  is the start's, or zero where that has none. Dropout may differ from the
  start's: it is no shape.

  Raises:
    ValueError: The start has an adapter of another shape than `lora`, or a base
      in too few bits to be trained.
  """
  with_head = _head_of(start, head) if head else {}
  if tuning == "full":
    if params_lib.is_quantized(start.base):
      raise ValueError(
        f"config.tuning='full' trains the base, which is kept in"
        f" {start.record['dtype']}: set config.base_dtype to 'float32' or"
        " 'bfloat16', or config.tuning to 'lora'."
      )
    base = start.base
    if start.adapter is not None:
      base = params_lib.merge(base, start.adapter, start.lora)
    # What is trained is kept in float32, whatever it was read in.
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
    return params_lib.partition(base | with_head, tuning)
  adapter = start.adapter
  if adapter is None:
    key = jax.random.fold_in(jax.random.key(seed), 1)
    adapter = jax.jit(roles.init_adapter, static_argnums=(1, 2))(
      key, start.config, lora
    )
  elif not lora.fits(start.lora):
    raise ValueError(
      f"The earlier stage has an adapter {start.lora}, this config asks for"
      f" {lora}. Set config.lora to the earlier values, or start anew from the"
      " stage before it."
    )
  tree = params_lib.combine(adapter, start.base) | with_head
  return params_lib.partition(tree, tuning)


def ensemble_of(
  start: model.Start,
  *,
  members: int,
  lora: LoraSpec,
  tuning: str,
  seed: int,
  head: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(stacked trainable, frozen) of several reward models; see `trainable_of`.

  Member k starts as a run with the seed `seed + k` would. With one member
  nothing is stacked.

  Raises:
    ValueError: The whole model is tuned, or the start is an ensemble of another
      size.
  """
  if start.ensemble not in (1, members):
    raise ValueError(
      f"The earlier stage has an ensemble of {start.ensemble}, this config asks"
      f" for config.ensemble={members}. Set it to {start.ensemble}, or start"
      " from the stage before it."
    )
  if members == 1:
    return trainable_of(start, lora=lora, tuning=tuning, seed=seed, head=head)
  if tuning != "lora":
    raise ValueError(
      f"config.ensemble={members} with config.tuning={tuning!r}: the members"
      " share one backbone. Use config.tuning='lora'."
    )
  made = [
    trainable_of(
      member_of(start, k), lora=lora, tuning=tuning, seed=seed + k, head=head
    )
    for k in range(members)
  ]
  return params_lib.stack([trainable for trainable, _ in made]), made[0][1]


def member_of(start: model.Start, number: int) -> model.Start:
  """A start with one member of its ensemble; what is no ensemble stays so."""
  if start.ensemble == 1:
    return start
  return dataclasses.replace(
    start,
    adapter=params_lib.member(start.adapter, number),
    head=params_lib.member(start.head, number),
    ensemble=1,
  )


def averaged(start: model.Start) -> model.Start:
  """An ensemble as one reward model; see `params.average_members`."""
  if start.ensemble == 1:
    return start
  tree, lora = params_lib.average_members(
    start.adapter | start.head, start.lora
  )
  head = {params_lib.HEAD: tree.pop(params_lib.HEAD)}
  return dataclasses.replace(
    start, adapter=tree, lora=lora, head=head, ensemble=1
  )
