"""Low-rank adapters: which projections carry one, and how it is applied.

y = x W + scale * dropout(x) A B,   A: [in, R],  B: [R, out]

B starts at zero, so that an adapter changes nothing before its first update;
A is Kaiming-uniform with a = sqrt(5), U(-1/sqrt(in), 1/sqrt(in)), as in PEFT.

Reference: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023,
arXiv:2312.03732.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from perl_jax import sharding
from perl_jax.models import quantization
from perl_jax.models.matmul import matmul

ATTENTION = ("attention/q", "attention/k", "attention/v", "attention/o")
MLP = ("mlp/gate", "mlp/up", "mlp/down")
PROJECTIONS = ATTENTION + MLP


# Names of the leaves that an adapter adds beside `kernel`.
LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class LoraSpec:
  """Shape of an adapter.

  Attributes:
    rank: `R`; 0 means no adapter and creates no leaves.
    alpha: Numerator of the scale.
    dropout: Probability of dropping an input of A while training.
    rslora: Scale is alpha / sqrt(R) instead of alpha / R.
    targets: "attention" (as in arXiv:2403.10704), "all" (all linear layers), or
      a regular expression that is matched in full against names such as
      "attention/q" or "mlp/down".
  """

  rank: int = 0
  alpha: float = 16.0
  dropout: float = 0.0
  rslora: bool = False
  targets: str = "attention"

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f"lora.rank={self.rank} must be at least 0.")
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f"lora.dropout={self.dropout} must be in [0, 1).")
    if self.rank and not any(map(self.adapts, PROJECTIONS)):
      raise ValueError(
        f"lora.targets={self.targets!r} matches no projection; use"
        f" 'attention', 'all' or a pattern over {PROJECTIONS}."
      )

  @property
  def scale(self) -> float:
    """Factor on A B: alpha / R, or alpha / sqrt(R) for rsLoRA."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

  def fits(self, other: "LoraSpec") -> bool:
    """Whether an adapter of the other shape can be trained further as this.

    Dropout may differ: it changes the training, not the adapter.
    """
    return dataclasses.replace(other, dropout=self.dropout) == self

  def adapts(self, projection: str) -> bool:
    """Whether the projection of this name carries an adapter."""
    if not self.rank:
      return False
    if self.targets == "attention":
      return projection in ATTENTION
    if self.targets == "all":
      return projection in PROJECTIONS
    try:
      return re.fullmatch(self.targets, projection) is not None
    except re.error as error:
      raise ValueError(
        f"lora.targets={self.targets!r} is not a regular expression: {error}."
      ) from error

  def to_dict(self) -> dict[str, Any]:
    """JSON-able fields."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "LoraSpec":
    """Inverse of `to_dict`."""
    return cls(**fields)


class Projection(nn.Module):
  """Linear layer that owns its adapter.

  Attributes:
    features: Size of the output.
    name_for_lora: Name of the projection for `LoraSpec.adapts`.
    lora: Adapter shape.
    use_bias: Whether to add a bias.
    dtype: Compute dtype; parameters keep theirs.
    kernel_init: Initializer of the base kernel.
    layout: Sharding of the parameters on a mesh.
  """

  features: int
  name_for_lora: str
  lora: LoraSpec
  use_bias: bool
  dtype: str
  kernel_init: nn.initializers.Initializer
  layout: sharding.Layout = sharding.TRAIN

  @nn.compact
  def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
    """Maps `[..., in]` to `[..., features]`."""
    width = x.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (width, self.features))
    gather = None
    if sharding.gathers(self.layout):
      path = f"layers/{self.name_for_lora}/kernel"
      gather = functools.partial(sharding.gather, path=path, layout=self.layout)
    x = x.astype(self.dtype)
    y = quantization.project(x, kernel, self.dtype, gather)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + bias.astype(self.dtype)
    if not self.lora.adapts(self.name_for_lora):
      return y
    rank = self.lora.rank
    kaiming = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    lora_a = self.param("lora_a", kaiming, (width, rank))
    lora_b = self.param("lora_b", nn.initializers.zeros, (rank, self.features))
    dropped = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
    low = matmul(dropped, lora_a.astype(self.dtype))
    scale = jnp.asarray(self.lora.scale, self.dtype)
    return y + matmul(low, lora_b.astype(self.dtype)) * scale
