"""LoRA adapters as the files that llama.cpp and Ollama load beside a base.

A file has a pair of tensors for each matrix of the base that is adapted:

    blk.3.attn_q.weight.lora_a   A transposed, [R, in]
    blk.3.attn_q.weight.lora_b   B transposed, [out, R]

llama.cpp adds s / R * lora_b lora_a to the matrix, where s is the one number
`adapter.lora.alpha` and R the number of rows of that lora_a. So s = scale * R
gives this package's scale * A B, for rsLoRA too.

Reference: ggml-org/llama.cpp, `llama_adapter_lora_weight::get_scale`.
"""

import os

import numpy as np

from perl_jax import hosts
from perl_jax import params as params_lib
from perl_jax.interop.gguf import names
from perl_jax.interop.gguf.dependency import import_gguf
from perl_jax.interop.gguf.writing import Field, Tensor, write
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec


def save_adapter(
  path: str | os.PathLike,
  config: ModelConfig,
  spec: LoraSpec,
  adapter: params_lib.Params,
  *,
  architecture: str,
  name: str,
) -> None:
  """Writes an adapter as a file for `llama-server --lora`.

  Args:
    path: The file.
    config: Shapes and switches of the model.
    spec: Shape of the adapter.
    adapter: LoRA leaves, `[L, in, R]` and `[L, R, out]`.
    architecture: Architecture of the base, as llama.cpp names it.
    name: What the file is called in its metadata.
  """
  gguf = import_gguf()
  text, kind = gguf.GGUFValueType.STRING, gguf.GGMLQuantizationType.F32
  tensors = []
  for path_, leaf in params_lib.flatten(adapter).items():
    stem, part = path_.rsplit("/", 1)
    source = names.source(config, architecture, f"{stem}/kernel")
    host = np.asarray(hosts.to_host(leaf), np.float32)
    for matrix, half in zip(source.names, host, strict=True):
      # Of A the columns are inputs, which are in no other order.
      values = source.to_file(half) if part == "lora_b" else half.T
      tensors.append(
        Tensor(f"{matrix}.{part}", values.shape, kind, lambda v=values: v)
      )
  fields = [
    Field("general.type", "adapter", text),
    Field("general.name", name, text),
    Field(
      "general.file_type",
      int(gguf.LlamaFileType.ALL_F32),
      gguf.GGUFValueType.UINT32,
    ),
    Field("adapter.type", "lora", text),
    Field(
      "adapter.lora.alpha",
      spec.scale * spec.rank,
      gguf.GGUFValueType.FLOAT32,
    ),
  ]
  write(path, architecture, fields, tensors)
