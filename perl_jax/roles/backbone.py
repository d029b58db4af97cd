"""The model that all roles share: its trees, and one pass through it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax.models import transformer
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.roles.sequences import Sequence

Params = params_lib.Params


@dataclasses.dataclass(frozen=True)
class Backbone:
  """Static description of the model that all roles share.

  Attributes:
    config: Shapes and switches of the transformer.
    lora: Shape of every adapter on it.
  """

  config: ModelConfig
  lora: LoraSpec

  def module(self, params: Params) -> transformer.Transformer:
    """The transformer; at rank 0 if the tree holds no adapter."""
    spec = self.lora if params_lib.has_adapters(params) else LoraSpec()
    return transformer.Transformer(self.config, spec)


def init_base(key: jax.Array, config: ModelConfig) -> dict[str, Any]:
  """Random base weights, float32."""
  return _init(key, config, LoraSpec())


def init_adapter(
  key: jax.Array, config: ModelConfig, lora: LoraSpec
) -> dict[str, Any]:
  """The LoRA leaves of a new adapter; its B is zero."""
  leaves = params_lib.flatten(_init(key, config, lora))
  return params_lib.unflatten(
    {p: leaf for p, leaf in leaves.items() if params_lib.is_adapter(p)}
  )


def _init(key, config, lora):
  one = jnp.zeros((1, 1), jnp.int32)
  module = transformer.Transformer(config, lora)
  return module.init(key, one, one, one + 1)["params"]


def init_head(
  config: ModelConfig, *, likelihood: bool = False
) -> dict[str, Any]:
  """A scalar head that says 0 everywhere; see `response_scores`."""
  head = {
    "kernel": jnp.zeros((config.width,), jnp.float32),
    "bias": jnp.zeros((), jnp.float32),
  }
  if likelihood:
    head["likelihood"] = jnp.zeros((2,), jnp.float32)
  return {params_lib.HEAD: head}


def head_kernel(config: ModelConfig, params: Params) -> jax.Array:
  """The matrix `[D, V]` that maps hidden states to logits."""
  if config.tied_head:
    return params["embedding"].T
  return params["lm_head"]


def hidden_states(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  *,
  key: jax.Array | None = None,
  contiguous: bool = False,
) -> jax.Array:
  """Final hidden states `[B, T, D]`.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of one role; a scalar head in it is ignored.
    sequence: Tokens, positions, segments.
    key: Turns LoRA dropout on.
    contiguous: What `Transformer.__call__` calls so: true of padded and packed
      rows.
  """
  body = {k: v for k, v in params.items() if k != params_lib.HEAD}
  hidden, _ = backbone.module(body).apply(
    {"params": body},
    *sequence,
    contiguous=contiguous,
    deterministic=key is None,
    rngs=None if key is None else {"dropout": key},
  )
  return hidden
