"""Small GGUF models written by the `gguf` library alone, for our code to read.

Names come from the library's table for each architecture, and the order of the
rows of q and k is that of llama.cpp's converter, so that nothing of ours stands
between a tree of parameters and the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from perl_jax import params as params_lib
from perl_jax.interop import hf_names
from perl_jax.interop.gguf import names
from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from tests import toys

# Preset -> architecture as llama.cpp names it.
ARCHITECTURES = {
  "llama_tiny": "llama",
  "qwen2_tiny": "qwen2",
  "qwen3_tiny": "qwen3",
  "gemma_tiny": "gemma",
  "gemma2_tiny": "gemma2",
  "gemma3_tiny": "gemma3",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ENDS = (0, 2)  # those that llama.cpp takes for the end of a response
TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
  "{{ message['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(preset: str, **overrides: Any) -> ModelConfig:
  """A preset with shapes that llama.cpp takes, windows that a test goes past.

  The scale of queries of Gemma 2 and 3 is no field of the file: llama.cpp takes
  H ** -0.5, and of Gemma 3 every sixth layer is global.
  """
  fields: dict[str, Any] = {
    "vocab_size": len(tokens()),
    "width": 64,
    "mlp_width": 96,
    "head_dim": 16,
    "max_len": 128,
  }
  if preset == "gemma2_tiny":
    fields["query_scale"] = None
  if preset == "gemma3_tiny":
    fields |= {"num_layers": 6, "global_every": 6}
  return presets.preset(preset, **fields | overrides)


def drawn(preset: str, seed: int) -> params_lib.Params:
  """Random parameters of a preset."""
  return toys.random_params(config(preset), seed=seed)


def tokens() -> list[str]:
  """The special tokens, the bytes of ASCII as GPT-2 writes them, two merges.

  No bytes above 127: of what is no whole character, the server says nothing.
  """
  bytes_ = [chr(256 + b) for b in range(33)]
  bytes_ += [chr(b) for b in range(33, 127)] + [chr(256 + 33)]
  return [*SPECIAL, *bytes_, "in", "\u0120t"]


def write(
  path: Path,
  preset: str,
  params: params_lib.Params | None = None,
  *,
  qtype: str = "F32",
  fields: Mapping[str, Any] | None = None,
  extra: Mapping[str, np.ndarray | None] | None = None,
  **overrides: Any,
) -> params_lib.Params:
  """Writes a model; returns its parameters, drawn if none are given.

  Args:
    path: The file.
    preset: One of `ARCHITECTURES`.
    params: The base tree.
    qtype: Type of the matrices.
    fields: Other values of the metadata; None leaves a key out.
    extra: More tensors or others, float32; None leaves one out.
    **overrides: Fields of `ModelConfig`.
  """
  cfg = config(preset, **overrides)
  if params is None:
    params = toys.random_params(cfg)
  architecture = ARCHITECTURES[preset]
  writer = gguf.GGUFWriter(path, architecture)
  _write_fields(writer, cfg)
  _write_tokenizer(writer)
  kind = gguf.GGMLQuantizationType[qtype]
  writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[qtype]])
  for key, value in (fields or {}).items():
    writer.kv_data[0].pop(key, None)
    if key == "general.alignment":
      writer.add_custom_alignment(value)
    elif value is not None:
      types = gguf.GGUFValueType
      found = types.get_type(value)
      if type(value) is int and value >= 0:
        found = types.UINT32
      writer.add_key_value(key, value, found)
  named = tensors(cfg, architecture, params) | dict(extra or {})
  for name, tensor in named.items():
    if tensor is None:
      continue
    if tensor.ndim == 1 or name in (extra or {}):
      writer.add_tensor(name, tensor)
    else:
      stored = gguf.quants.quantize(tensor, kind)
      writer.add_tensor(name, stored, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return params


_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}


def tensors(
  cfg: ModelConfig, architecture: str, params: params_lib.Params
) -> dict[str, np.ndarray]:
  """Every tensor of a model, float32, by its name in the file."""
  table = gguf.get_tensor_name_map(
    next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture),
    cfg.num_layers,
  )
  leaves = params_lib.flatten(params)
  sources = hf_names.sources(cfg, {p: x.shape for p, x in leaves.items()})
  found = {}
  for path, source in sources.items():
    for layer, theirs in enumerate(source.names):
      tensor = leaves[path][layer] if source.stacked else leaves[path]
      tensor = tensor.T if source.transposed else tensor
      tensor = as_llama_cpp(cfg, architecture, theirs, tensor)
      name = table.get_name(theirs, (".weight", ".bias"))
      found[name] = np.ascontiguousarray(tensor)
  return found


def read(path: Path, preset: str, **overrides: Any) -> params_lib.Params:
  """The base tree of a file with these names, float32."""
  cfg = config(preset, **overrides)
  found = {
    tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    for tensor in gguf.GGUFReader(path).tensors
  }
  leaves = {}
  shapes = params_lib.flatten(toys.shapes(cfg))
  for path_, source in names.sources(
    cfg, ARCHITECTURES[preset], shapes
  ).items():
    parts = [source.from_file(found[name]) for name in source.names]
    leaves[path_] = np.stack(parts) if source.stacked else parts[0]
  return params_lib.unflatten(leaves)


def as_llama_cpp(
  cfg: ModelConfig, architecture: str, name: str, tensor: np.ndarray
) -> np.ndarray:
  """What llama.cpp's converter makes of a tensor of `transformers`."""
  if architecture.startswith("gemma") and name.endswith("norm.weight"):
    return tensor + 1
  heads = {"q_proj": cfg.num_heads, "k_proj": cfg.num_kv_heads}
  count = heads.get(name.split(".")[-2])
  if architecture != "llama" or count is None:
    return tensor
  halves = tensor.reshape(count, 2, cfg.head_dim // 2, *tensor.shape[1:])
  return halves.swapaxes(1, 2).reshape(tensor.shape)


def _write_fields(writer: gguf.GGUFWriter, cfg: ModelConfig) -> None:
  writer.add_name("Tiny")
  writer.add_string("general.license", "apache-2.0")
  writer.add_context_length(cfg.max_len)
  writer.add_block_count(cfg.num_layers)
  writer.add_embedding_length(cfg.width)
  writer.add_feed_forward_length(cfg.mlp_width)
  writer.add_head_count(cfg.num_heads)
  writer.add_head_count_kv(cfg.num_kv_heads)
  writer.add_key_length(cfg.head_dim)
  writer.add_value_length(cfg.head_dim)
  writer.add_rope_dimension_count(cfg.head_dim)
  writer.add_rope_freq_base(cfg.rope_theta)
  writer.add_layer_norm_rms_eps(cfg.norm_eps)
  writer.add_vocab_size(cfg.vocab_size)
  if cfg.sliding_window is not None:
    writer.add_sliding_window(cfg.sliding_window)
  if cfg.attn_softcap is not None:
    writer.add_attn_logit_softcapping(cfg.attn_softcap)
  if cfg.final_softcap is not None:
    writer.add_final_logit_softcapping(cfg.final_softcap)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
  special = gguf.TokenType.CONTROL
  every = tokens()
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  writer.add_token_list(every)
  writer.add_token_types(
    [special] * len(SPECIAL)
    + [gguf.TokenType.NORMAL] * (len(every) - len(SPECIAL))
  )
  writer.add_token_merges(["i n", "\u0120 t"])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(0)
  writer.add_add_bos_token(False)
  writer.add_chat_template(TEMPLATE)
