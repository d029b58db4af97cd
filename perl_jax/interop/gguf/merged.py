"""A whole model as a GGUF file, with the metadata of the file it came from.

Everything but the weights is that file's: tokenizer, chat template, positions,
licence. Weights are merged in float32, a tensor at a time.
"""

import functools
import os
from collections.abc import Iterator

import jax
import numpy as np

from perl_jax import hosts, roles
from perl_jax import params as params_lib
from perl_jax.interop.gguf import config as config_lib
from perl_jax.interop.gguf import names
from perl_jax.interop.gguf.dependency import import_gguf
from perl_jax.interop.gguf.reading import File
from perl_jax.interop.gguf.writing import Field, Tensor, write
from perl_jax.models import quantization

# Types of the matrices, and what llama.cpp calls a file of them. Norms and
# biases are F32 in each.
TYPES = {
  "f32": ("F32", "ALL_F32"),
  "f16": ("F16", "MOSTLY_F16"),
  "bf16": ("BF16", "MOSTLY_BF16"),
  "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
# True of the other file only: its parts, and how its matrices were quantised.
_NOT_COPIED = ("split.", "quantize.", "general.architecture")


def save_model(
  path: str | os.PathLike,
  role: roles.Role,
  *,
  like: str | os.PathLike,
  kind: str,
  chat_template: str | None = None,
) -> None:
  """Writes a policy, its adapter merged into its base.

  Args:
    path: The file.
    role: The policy: base in `frozen`, an adapter or nothing in `trainable`.
    like: GGUF file that the base came from, for the metadata.
    kind: One of `TYPES`. A matrix whose rows do not divide into the blocks of a
      quantised type is F16.
    chat_template: The one that the policy was trained with; None is that of
      `like`.

  Raises:
    ValueError: The policy is of another file, or a weight is too large for F16.
  """
  gguf = import_gguf()
  file = File(like)
  architecture = config_lib.architecture(file)
  shapes = {
    path_: tuple(leaf.shape)
    for path_, leaf in params_lib.flatten(role.frozen).items()
  }
  sources = names.sources(role.config, architecture, shapes)
  parts = {
    name: (path_, source, layer)
    for path_, source in sources.items()
    for layer, name in enumerate(source.names)
  }
  missing = sorted(set(parts) - set(file.tensors))
  if missing:
    raise ValueError(
      f"{like} has no {', '.join(missing[:4])}, so that the model is of another"
      " file. Give the file that the base was read from."
    )
  wanted = gguf.GGMLQuantizationType[TYPES[kind][0]]
  tensors = []
  for name, info in file.tensors.items():
    stored, make = info.kind, functools.partial(file.read, name)
    if name in parts:  # else frequencies of the positions, as they are
      stored = _fitting(gguf, wanted, info.shape)
      make = functools.partial(_merged, role, *parts[name])
    tensors.append(Tensor(name, info.shape, stored, make))
  fields = _fields(gguf, file, kind, chat_template)
  write(path, architecture, fields, tensors)


def _fitting(gguf, wanted, shape):
  """The type of a tensor in a file whose matrices are of the type `wanted`."""
  if len(shape) == 1:
    return gguf.GGMLQuantizationType.F32
  block, _ = gguf.GGML_QUANT_SIZES[wanted]
  return gguf.GGMLQuantizationType.F16 if shape[-1] % block else wanted


def _merged(
  role: roles.Role, path: str, source: names.Source, layer: int
) -> np.ndarray:
  """One tensor of the file, float32: W + scale A B, in the file's order."""

  def part(leaf):
    if not source.stacked:
      return leaf
    # Not leaf[layer], which is compiled for each layer.
    return jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), leaf
    )

  base = params_lib.flatten(role.frozen)
  tree = {path: quantization.as_array(part(base[path]), "float32")}
  stem = path.removesuffix("kernel")
  pair = {
    name: part(leaf)
    for name, leaf in params_lib.flatten(role.adapter or {}).items()
    if name.startswith(stem)
  }
  if pair:
    tree = params_lib.flatten(
      params_lib.merge(
        params_lib.unflatten(tree), params_lib.unflatten(pair), role.lora
      )
    )
  return source.to_file(np.asarray(hosts.to_host(tree[path]), np.float32))


def _fields(gguf, file, kind, chat_template) -> Iterator[Field]:
  """The other file's keys, with those replaced that are no longer true."""
  types = gguf.GGUFValueType
  replaced = {
    "general.file_type": (
      int(gguf.LlamaFileType[TYPES[kind][1]]),
      types.UINT32,
    ),
    "general.quantization_version": (gguf.GGML_QUANT_VERSION, types.UINT32),
  }
  if chat_template is not None:
    replaced["tokenizer.chat_template"] = (chat_template, types.STRING)
  for key, value in file.metadata.items():
    if key.startswith(_NOT_COPIED) or key in replaced:
      continue
    if key == "general.name":
      value = f"{value}, tuned with perl_jax"
    yield Field(key, value, *map(types, file.types[key]))
  for key, (value, kind_) in replaced.items():
    yield Field(key, value, kind_)
