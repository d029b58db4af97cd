"""Toy models with random parameters, shared by the tests of the model floors.

Every leaf is drawn, also those that start at 0 or 1 (norms, biases, B, heads):
at their initial values they would hide what they multiply.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models import presets, transformer
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

VOCAB = 29
FAMILIES = sorted(name for name in presets.PRESETS if name.endswith("_tiny"))
NO_LORA = LoraSpec()


def config(name: str = "tiny", **overrides: Any) -> ModelConfig:
  """A preset with a small vocabulary."""
  return presets.preset(name, **{"vocab_size": VOCAB} | overrides)


def shapes(
  cfg: ModelConfig, lora: LoraSpec = NO_LORA, *, head: bool = False
) -> dict[str, Any]:
  """The tree of a role as `ShapeDtypeStruct`s; nothing is computed."""

  def init():
    one = jnp.ones((1, 1), jnp.int32)
    module = transformer.Transformer(cfg, lora)
    return module.init(jax.random.key(0), one, one, one)["params"]

  tree = jax.eval_shape(init)
  if head:
    tree |= jax.eval_shape(lambda: roles.init_head(cfg))
  return tree


def random_params(
  cfg: ModelConfig,
  lora: LoraSpec = NO_LORA,
  *,
  head: bool = False,
  seed: int = 0,
) -> dict[str, Any]:
  """A drawn tree of a role, NumPy float32.

  The same seed gives the same base whatever `lora` and `head` are.
  """
  leaves = {}
  for path, leaf in params_lib.flatten(shapes(cfg, lora, head=head)).items():
    rng = np.random.default_rng([seed, *path.encode()])
    value = rng.normal(size=leaf.shape)
    name = path.rsplit("/", 1)[-1]
    if name == "scale":
      value = 0.3 * value + (0.0 if cfg.norm_plus_one else 1.0)
      if "post_" in path:
        value = 6.0 * value + 5.0 * cfg.norm_plus_one  # as in `_gain`
    elif name in ("bias", "lora_b"):
      value = 0.3 * value
    elif name == "embedding":
      # Logits of a few units, so that soft-caps bite.
      value = 2.0 * value / cfg.width**0.5
    else:
      fan_in = leaf.shape[-1] if path == "head/kernel" else leaf.shape[-2]
      value = _gain(cfg, path) * value / fan_in**0.5
    leaves[path] = np.asarray(value, np.float32)
  return params_lib.unflatten(leaves)


def _gain(cfg: ModelConfig, path: str) -> float:
  if path.endswith(("/q/kernel", "/k/kernel")):
    return 2.0  # peaked attention
  if cfg.embed_scale and path.endswith(("/o/kernel", "/down/kernel")):
    # Else the scaled embedding outweighs the layers, and with a tied head a
    # token predicts itself.
    return 6.0
  return 1.0


def random_tokens(seed: int, *shape: int, vocab: int = VOCAB) -> np.ndarray:
  """Token ids, int32."""
  rng = np.random.default_rng([1, seed])
  return rng.integers(0, vocab, shape).astype(np.int32)


def perturbed(tree: Any, scale: float = 0.3, seed: int = 7) -> Any:
  """The tree with noise on every leaf."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.asarray(x + scale * rng.normal(size=x.shape), np.float32),
    tree,
  )
