"""Weights of a Hugging Face checkpoint to the base tree and back, leaf by leaf.

    checkpoint = Checkpoint("Llama-3.2-1B")
    storage = Storage("bfloat16")
    base = load_base(checkpoint, config, mesh=mesh, storage=storage)
    save_base("merged", config, base, dtype="bfloat16")

A leaf is read, cast and put where its sharding rule wants it before the next is
read, each device getting its own part: the host holds one leaf at a time.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding

from perl_jax import files as files_lib
from perl_jax import hosts, roles, sharding
from perl_jax import params as params_lib
from perl_jax.interop import hf_names
from perl_jax.interop.storage import Storage
from perl_jax.models.config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = ("F32", "F16", "BF16")
SHARD_BYTES = 5 * 10**9


class Checkpoint:
  """The tensors of a checkpoint directory, by name; nothing is read at once.

  Attributes:
    directory: Directory of the checkpoint.
    shapes: Shape of each tensor.
    dtypes: Name of each tensor's dtype in the file ("F32", "BF16", ...).

  Raises:
    FileNotFoundError: No weights, or a shard that the index names is missing.
    ValueError: The index or a shard is broken, or names a file outside the
      directory.
  """

  def __init__(self, directory: str | os.PathLike) -> None:
    self.directory = Path(directory)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, str] = {}
    self._files: dict[str, str] = {}
    listed = self._listed()
    for file in sorted(set(listed.values())) or [SINGLE]:
      with self._open(file) as shard:
        for name in shard.keys():  # noqa: SIM118 (not a mapping)
          tensor = shard.get_slice(name)
          self.shapes[name] = tuple(tensor.get_shape())
          self.dtypes[name] = tensor.get_dtype()
          self._files[name] = file
    lost = sorted(n for n, file in listed.items() if self._files.get(n) != file)
    if lost:
      raise ValueError(
        f"{self.directory / INDEX} lists {len(lost)} tensors that are not in"
        f" the file it names: {lost[:4]}. Download the checkpoint again."
      )

  def _listed(self) -> dict[str, str]:
    """File by tensor, from the index; empty if there is a single file."""
    index = self.directory / INDEX
    if not index.is_file():
      if (self.directory / SINGLE).is_file():
        return {}
      pickled = any(self.directory.glob("pytorch_model*.bin"))
      hint = (
        " pytorch_model.bin is a pickle, which can run code and is not read:"
        " save the model with `save_pretrained(..., safe_serialization=True)`."
        if pickled
        else ""
      )
      raise FileNotFoundError(
        f"{self.directory} has neither {SINGLE} nor {INDEX}.{hint}"
      )
    try:
      listed = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{index} has no readable weight_map: {error!r}") from (
        error
      )
    for name, file in listed.items():
      if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(
          f"{index}: {name} is said to be in {file!r}. A shard has to lie in"
          " the directory itself."
        )
    return listed

  def _open(self, file: str):
    path = self.directory / file
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} is missing, and {INDEX} names it. Download it again."
      )
    try:
      return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{path} is truncated or no safetensors file: {error}. Download it"
        " again."
      ) from error

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A part of one tensor."""
    with self._open(self._files[name]) as shard:
      return shard.get_slice(name)[index]


def base_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shape by path of the base tree."""
  key = jax.ShapeDtypeStruct((2,), np.uint32)
  tree = jax.eval_shape(lambda k: roles.init_base(k, config), key)
  return {p: tuple(x.shape) for p, x in params_lib.flatten(tree).items()}


def load_base(
  checkpoint: Checkpoint,
  config: ModelConfig,
  *,
  mesh: Mesh,
  storage: Storage,
) -> dict[str, Any]:
  """The base tree of a checkpoint, on the mesh.

  Args:
    checkpoint: The files.
    config: Shapes and switches of the model.
    mesh: Mesh for the leaves, sharded by `sharding.RULES`.
    storage: Converts the leaves to the dtype they are kept in; a kernel is
      quantised before the next is read.

  Raises:
    ValueError: Tensors are missing, unknown, or of another shape or dtype; all
      of them are listed.
  """
  shapes = base_shapes(config)
  sources = hf_names.sources(config, shapes)
  _require_fit(checkpoint, config, shapes, sources)
  leaves = {}
  for path, shape in shapes.items():
    layout = NamedSharding(mesh, sharding.spec_for(path, len(shape)))
    leaf = _load_leaf(
      checkpoint, sources[path], shape, layout, jnp.dtype(storage.read_dtype)
    )
    stored = storage.put(path, leaf)
    leaves[path] = sharding.place(mesh, {path: stored}, share=True)[path]
  return params_lib.unflatten(leaves)


def _load_leaf(checkpoint, source, shape, layout, dtype):
  parts: dict[Any, np.ndarray] = {}

  def part(index):
    bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    if bounds not in parts:  # devices that hold a copy ask for the same
      parts[bounds] = _read_part(checkpoint, source, bounds, dtype)
    return parts[bounds]

  leaf = jax.make_array_from_callback(shape, layout, part)
  return jax.block_until_ready(leaf)


def _read_part(checkpoint, source, bounds, dtype):
  whole = np.empty([stop - start for start, stop in bounds], dtype)
  first, inner = 0, bounds
  if source.stacked:
    first, inner = bounds[0][0], bounds[1:]
  order = inner[::-1] if source.transposed else inner
  index = tuple(slice(*b) for b in order)
  for i in range(len(whole)) if source.stacked else (None,):
    name = source.names[0 if i is None else first + i]
    found = checkpoint.read(name, index)
    into = whole if i is None else whole[i]
    into[...] = found.T if source.transposed else found
  return whole


def _expected(source, shape) -> tuple[int, ...]:
  inner = shape[1:] if source.stacked else shape
  return tuple(inner[::-1] if source.transposed else inner)


def _require_fit(checkpoint, config, shapes, sources) -> None:
  wanted = {
    name: _expected(source, shapes[path])
    for path, source in sources.items()
    for name in source.names
  }
  extra = {n for n in checkpoint.shapes if n not in wanted}
  extra = {n for n in extra if not hf_names.IGNORED.fullmatch(n)}
  extra.discard(hf_names.SCORE)
  if config.tied_head and hf_names.LM_HEAD in extra:
    _require_tied(checkpoint)
    extra.discard(hf_names.LM_HEAD)
  missing = sorted(set(wanted) - set(checkpoint.shapes))
  shared = sorted(set(wanted) & set(checkpoint.shapes))
  wrong = [
    f"{n}: {checkpoint.shapes[n]}, expected {wanted[n]}"
    for n in shared
    if checkpoint.shapes[n] != wanted[n]
  ]
  dtypes = [
    f"{n}: {checkpoint.dtypes[n]}"
    for n in shared
    if checkpoint.dtypes[n] not in FLOATS
  ]
  if missing or extra or wrong or dtypes:
    raise ValueError(
      f"The weights in {checkpoint.directory} are not those that its"
      " config.json describes."
      + _listed("missing", missing)
      + _listed("extra", sorted(extra))
      + _listed("other shape", wrong)
      + _listed(f"dtype none of {', '.join(FLOATS)}", dtypes)
    )


def _require_tied(checkpoint) -> None:
  """A tied head that is saved as well has to be the embedding."""
  names = (hf_names.EMBEDDING, hf_names.LM_HEAD)
  if checkpoint.shapes[names[0]] == checkpoint.shapes[names[1]]:
    rows, step = checkpoint.shapes[names[0]][0], 4096
    if all(
      np.array_equal(
        *(checkpoint.read(n, (slice(i, min(i + step, rows)),)) for n in names)
      )
      for i in range(0, rows, step)
    ):
      return
  raise ValueError(
    f"{checkpoint.directory}: config.json says tie_word_embeddings, but"
    f" {names[1]} differs from {names[0]}. Set tie_word_embeddings to false if"
    " the head was trained on its own."
  )


def _listed(what: str, items: list[str], most: int = 8) -> str:
  if not items:
    return ""
  more = f" and {len(items) - most} more" if len(items) > most else ""
  return f"\n  {what}: {', '.join(items[:most])}{more}"


def save_base(
  directory: str | os.PathLike,
  config: ModelConfig,
  base: Mapping[str, Any],
  *,
  dtype: str,
  shard_bytes: int = SHARD_BYTES,
  extra: Mapping[str, np.ndarray] | None = None,
  head: bool = True,
) -> list[str]:
  """Writes the base as safetensors, in shards with an index if it is large.

  Args:
    directory: Existing directory for the files.
    config: Shapes and switches of the model.
    base: Parameters of the backbone.
    dtype: Dtype of the tensors, "float32" or "bfloat16".
    shard_bytes: Largest number of bytes in a file, unless one tensor has more.
    extra: Further tensors by name, written as they are.
    head: Whether an untied `lm_head` is written too.

  Returns:
    Names of the files.
  """
  leaves = params_lib.flatten(base)
  if not head:
    leaves.pop("lm_head", None)
  shapes = {p: tuple(x.shape) for p, x in leaves.items()}
  sources = hf_names.sources(config, shapes)
  size = jnp.dtype(dtype).itemsize
  plan: list[list[tuple[str, str, int]]] = [[]]
  used = 0
  for path, source in sources.items():
    for i, name in enumerate(source.names):
      needs = math.prod(_expected(source, shapes[path])) * size
      if plan[-1] and used + needs > shard_bytes:
        plan.append([])
        used = 0
      plan[-1].append((name, path, i))
      used += needs
  if len(plan) == 1:
    files = [SINGLE]
  else:
    files = [
      f"model-{i + 1:05d}-of-{len(plan):05d}.safetensors"
      for i in range(len(plan))
    ]
  weight_map = {}
  for file, entries in zip(files, plan, strict=True):
    tensors = {}
    for name, path, i in entries:
      leaf = leaves[path][i] if sources[path].stacked else leaves[path]
      array = np.asarray(hosts.to_host(leaf)).astype(dtype)
      array = array.T if sources[path].transposed else array
      tensors[name] = np.ascontiguousarray(array)
      weight_map[name] = file
    if file == files[-1]:
      tensors |= dict(extra or {})
      weight_map |= dict.fromkeys(extra or {}, file)
    safetensors.numpy.save_file(
      tensors, Path(directory) / file, metadata={"format": "pt"}
    )
  if len(files) > 1:
    total = sum(math.prod(s) for s in shapes.values()) * size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files_lib.write_json(Path(directory) / INDEX, index)
  return files
