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
from perl_jax.interop.gguf.library import import_gguf
from perl_jax.interop.gguf.writing import Field, Tensor, write
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

_MATRICES = {
  "attention/q": "attn_q",
  "attention/k": "attn_k",
  "attention/v": "attn_v",
  "attention/o": "attn_output",
  "mlp/gate": "ffn_gate",
  "mlp/up": "ffn_up",
  "mlp/down": "ffn_down",
}


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
    architecture: That of the base, as llama.cpp names it.
    name: What the file is called in its metadata.
  """
  gguf = import_gguf()
  text, kind = gguf.GGUFValueType.STRING, gguf.GGMLQuantizationType.F32
  tensors = []
  for leaf_path, leaf in params_lib.flatten(adapter).items():
    stem, part = leaf_path.removeprefix("layers/").rsplit("/", 1)
    rows, columns = leaf.shape[2], leaf.shape[1]
    for layer in range(config.num_layers):

      def make(leaf=leaf, layer=layer, stem=stem, part=part):
        matrix = np.asarray(hosts.to_host(leaf[layer]), np.float32).T
        if part == "lora_b":
          return _rows_in_file(config, architecture, stem, matrix)
        return matrix

      tensors.append(
        Tensor(
          f"blk.{layer}.{_MATRICES[stem]}.weight.{part}",
          (rows, columns),
          kind,
          make,
        )
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


def _rows_in_file(config, architecture, stem, matrix):
  """Rows of q and k in the order of the file: in pairs, if of a Llama.

  There llama.cpp rotates neighbours, (0, 1), (2, 3), ... of a head, where the
  weights of `transformers` are for (0, H/2), (1, H/2 + 1), ...
  """
  heads = {"attention/q": config.num_heads, "attention/k": config.num_kv_heads}
  if architecture != "llama" or stem not in heads:
    return matrix
  halves = matrix.reshape(heads[stem], 2, config.head_dim // 2, -1)
  return halves.swapaxes(1, 2).reshape(matrix.shape)
