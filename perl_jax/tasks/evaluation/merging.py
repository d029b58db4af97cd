"""How much merging an adapter into its base changes a model."""

import dataclasses

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles, sampling
from perl_jax.models.lora import LoraSpec


def largest_change(role: roles.Role, merged: params_lib.Params) -> float:
  """max |logit(merged) - logit(base + adapter)| on 8 x 32 random tokens.

  Both are computed in float32 from the weights as they are stored.

  Args:
    role: The model before the merge.
    merged: Its base with the adapter merged into it.
  """
  model = dataclasses.replace(role.config, dtype="float32")
  tokens = jax.random.randint(
    jax.random.key(0), (8, min(32, model.max_len)), 0, model.vocab_size
  )
  lengths = jnp.full(tokens.shape[:1], tokens.shape[1])

  def logits(params, lora):
    backbone = roles.Backbone(model, lora)
    hidden = roles.hidden_states(
      backbone, params, roles.right_padded(tokens, lengths)
    )
    return sampling.next_token_logits(backbone, params, hidden)

  unmerged = role.frozen
  if role.adapter is not None:
    unmerged = params_lib.combine(role.adapter, role.frozen)
  run = jax.jit(logits, static_argnums=1)
  before = run(unmerged, role.lora)
  after = run(merged, LoraSpec())
  return float(jnp.max(jnp.abs(before - after)))
