"""Where the references lie, how a test reads them, and what they say."""

import functools
import pathlib

import jax
import jax.numpy as jnp

from perl_jax import roles, sharding
from perl_jax.interop import hf_checkpoint
from perl_jax.interop.storage import Storage

REFERENCES = pathlib.Path(__file__).parent / "references"
MESH = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def load(directory, dtype="float32"):
  storage = Storage(dtype)
  return hf_checkpoint.load(directory, mesh=MESH, storage=storage)


@functools.partial(jax.jit, static_argnums=(0, 1))
def logits(config, lora, params, tokens, lengths):
  """Through `roles`, as the tasks compute them; 0 where padded."""
  sequence = roles.right_padded(tokens, lengths)
  hidden = roles.hidden_states(roles.Backbone(config, lora), params, sequence)
  found = hidden @ roles.head_kernel(config, params).astype(hidden.dtype)
  found = found.astype(jnp.float32)
  if config.final_softcap is not None:
    found = config.final_softcap * jnp.tanh(found / config.final_softcap)
  return jnp.where((sequence.segments > 0)[..., None], found, 0.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def scores(config, lora, params, tokens, lengths):
  return roles.response_scores(
    roles.Backbone(config, lora),
    params,
    roles.right_padded(tokens, lengths),
    jnp.zeros(tokens.shape, bool),
    max_response=1,
  )


def batch(expected):
  return jnp.asarray(expected["tokens"]), jnp.asarray(expected["lengths"])
