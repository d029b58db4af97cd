"""Tensors of a GGUF file that make up each leaf of the base, there and back.

As in a checkpoint of `transformers` there is a tensor for each layer, and a
matrix is [out, in] where a kernel here is [in, out]. Two things are llama.cpp's
own: in a Llama it rotates neighbours (0, 1), (2, 3), ... of a head where the
weights of `transformers` are for (0, H/2), (1, H/2 + 1), ..., so that the rows
of q and k are in another order; and the norms of Gemma are kept with the 1
added that `RMSNorm.plus_one` adds.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from perl_jax.interop import leaves
from perl_jax.models.config import ModelConfig

# Architectures as llama.cpp names them. Mistral is a Llama there.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
_INTERLEAVED = ("llama",)

_WHOLE = {
  "embedding": "token_embd.weight",
  "lm_head": "output.weight",
  "final_norm/scale": "output_norm.weight",
}
_IN_LAYER = {
  "attention/q": "attn_q",
  "attention/k": "attn_k",
  "attention/v": "attn_v",
  "attention/o": "attn_output",
  "attention/q_norm": "attn_q_norm",
  "attention/k_norm": "attn_k_norm",
  "attention_norm": "attn_norm",
  "post_attention_norm": "post_attention_norm",
  "mlp/gate": "ffn_gate",
  "mlp/up": "ffn_up",
  "mlp/down": "ffn_down",
  "mlp_norm": "ffn_norm",
  "post_mlp_norm": "post_ffw_norm",
}


@dataclasses.dataclass(frozen=True)
class Source(leaves.Source):
  """The tensors of a GGUF file that make up one leaf.

  Attributes:
    heads: Number of heads whose rows are interleaved in the file, or 0.
    offset: What the file has added to the values.
  """

  heads: int = 0
  offset: float = 0.0

  def to_file(self, part: np.ndarray) -> np.ndarray:
    """A tensor of the file, float32, from its part of the leaf."""
    found = part.T if self.transposed else part
    if self.heads:
      # [heads, 2, H/2] -> [heads, H/2, 2]
      halves = found.reshape(self.heads, 2, -1, *found.shape[1:])
      found = halves.swapaxes(1, 2).reshape(found.shape)
    return found + np.float32(self.offset) if self.offset else found

  def from_file(self, tensor: np.ndarray) -> np.ndarray:
    """A part of the leaf, float32, from its tensor in the file."""
    found = tensor - np.float32(self.offset) if self.offset else tensor
    if self.heads:
      pairs = found.reshape(self.heads, -1, 2, *found.shape[1:])
      found = pairs.swapaxes(1, 2).reshape(found.shape)
    return found.T if self.transposed else found


def sources(
  config: ModelConfig,
  architecture: str,
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Source]:
  """A `Source` for each path of the base tree.

  Args:
    config: Shapes and switches of the model.
    architecture: One of `ARCHITECTURES`.
    shapes: Shape of each leaf of the base tree, by path.
  """
  return {path: source(config, architecture, path) for path in shapes}


def source(config: ModelConfig, architecture: str, path: str) -> Source:
  """The `Source` of a path of the base tree."""
  offset = 1.0 if config.norm_plus_one and path.endswith("/scale") else 0.0
  if path in _WHOLE:
    return Source(
      (_WHOLE[path],),
      stacked=False,
      transposed=path == "lm_head",
      offset=offset,
    )
  stem, leaf = path.removeprefix("layers/").rsplit("/", 1)
  suffix = "bias" if leaf == "bias" else "weight"
  heads = {"attention/q": config.num_heads, "attention/k": config.num_kv_heads}
  return Source(
    tuple(
      f"blk.{i}.{_IN_LAYER[stem]}.{suffix}" for i in range(config.num_layers)
    ),
    stacked=True,
    transposed=leaf == "kernel",
    heads=heads.get(stem, 0) if architecture in _INTERLEAVED else 0,
    offset=offset,
  )
