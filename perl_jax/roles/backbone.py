"""The model that all roles share: its parameter trees and its forward pass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax.models import transformer
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.roles.closing import Closing
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
    """The transformer, with LoRA of rank 0 if the tree has no adapter."""
    spec = self.lora if params_lib.has_adapters(params) else LoraSpec()
    return transformer.Transformer(self.config, spec)


@dataclasses.dataclass(frozen=True)
class Role:
  """A model in one of the four parts: its shape and its two trees.

  The roles of a run share the arrays of `frozen` where they have one base.

  Attributes:
    backbone: Model and adapter shape.
    trainable: What the role has of its own: adapter and head, or with full
      tuning the whole tree. The leaves of an ensemble of reward models are
      stacked, `[members, ...]`.
    frozen: The base that it runs on; empty with full tuning.
    members: Number of models in `trainable`.
    closing: What a reward model reads after a response; None if its score is
      that of the response's own last token.
  """

  backbone: Backbone
  trainable: Params
  frozen: Params
  members: int = 1
  closing: Closing | None = None

  @property
  def config(self) -> ModelConfig:
    """Shapes and switches of the transformer."""
    return self.backbone.config

  @property
  def lora(self) -> LoraSpec:
    """Shape of the adapter; rank 0 for a role that has none."""
    return self.backbone.lora

  @property
  def head(self) -> Params | None:
    """{"head": ...}, or None if the role has no scalar head."""
    return {
      k: v for k, v in self.trainable.items() if k == params_lib.HEAD
    } or None

  @property
  def adapter(self) -> Params | None:
    """LoRA leaves, or None if the role has none."""
    if not params_lib.has_adapters(self.trainable):
      return None
    return {k: v for k, v in self.trainable.items() if k != params_lib.HEAD}

  def shares_base(self, other: "Role") -> bool:
    """Whether both run on the very same arrays, and not on equal copies."""
    return bool(self.frozen) and self.frozen is other.frozen

  def shares_pass(self, other: "Role") -> bool:
    """Whether the adapters of both can go through the base in one pass."""
    return self.shares_base(other) and self.lora.fits(other.lora)


def init_base(key: jax.Array, config: ModelConfig) -> dict[str, Any]:
  """Random base weights, float32; see `Transformer` for the tree."""
  return _init(key, config, LoraSpec())


def init_adapter(
  key: jax.Array, config: ModelConfig, lora: LoraSpec
) -> dict[str, Any]:
  """LoRA leaves of a new adapter, float32: random A, and B = 0."""
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
  """A scalar head of zeros, whose output is 0; see `response_scores`.

  Args:
    config: Shapes and switches of the transformer.
    likelihood: Whether the head has the leaf "likelihood" as well.
  """
  head = {
    "kernel": jnp.zeros((config.width,), jnp.float32),
    "bias": jnp.zeros((), jnp.float32),
  }
  if likelihood:
    head["likelihood"] = jnp.zeros((2,), jnp.float32)
  return {params_lib.HEAD: head}


def head_kernel(config: ModelConfig, params: Params) -> jax.Array:
  """The output projection `[D, V]`, which maps hidden states to logits."""
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
  """Final hidden states `[B, T, D]`, in the compute dtype.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of one role; a scalar head in it is ignored.
    sequence: Tokens, positions and segments.
    key: Random key that turns LoRA dropout on.
    contiguous: See `Transformer.__call__`; true for padded and packed rows.
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
