"""Weights of a Hugging Face checkpoint to the base tree and back, leaf by leaf.

    checkpoint = Checkpoint("Llama-3.2-1B")
    storage = Storage("bfloat16")
    base = load_base(checkpoint, config, mesh=mesh, storage=storage)
    save_base("merged", config, base, dtype="bfloat16")

Each device gets its own part of a leaf, and the host holds one leaf at a time.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import logging
from jax.sharding import Mesh

from perl_jax import disk, hosts
from perl_jax import files as files_lib
from perl_jax import params as params_lib
from perl_jax.interop import hf_files, hf_names, hf_scores, leaves
from perl_jax.interop.hf_files import FLOATS, INDEX, SINGLE, Checkpoint
from perl_jax.interop.storage import Storage
from perl_jax.models.config import ModelConfig

SHARD_BYTES = 5 * 10**9
# Prefixes that a model gets from what wraps it, and how to save it without.
_WRAPPERS = {
  "_orig_mod.": "the model that torch.compile wrapped was saved. Save"
  " `model._orig_mod` with save_pretrained.",
  "module.": "the model in a wrapper for several devices was saved. Save"
  " `model.module` with save_pretrained.",
  "base_model.": "the model under a PEFT adapter was saved. Save"
  " `model.merge_and_unload()` with save_pretrained.",
}


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
      of them are listed. Or one has a number that is not finite.
  """
  shapes = leaves.base_shapes(config)
  sources = hf_names.sources(config, shapes)
  _require_fit(checkpoint, config, shapes, sources)
  return leaves.load(
    shapes,
    lambda path, bounds, dtype: _read_part(
      checkpoint, sources[path], bounds, dtype
    ),
    lambda path, layer: checkpoint.place(sources[path].names[layer]),
    mesh=mesh,
    storage=storage,
  )


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
    with np.errstate(over="ignore"):  # `leaves.load` refuses what is infinite
      into[...] = found.T if source.transposed else found
  return whole


def with_its_head(checkpoint: Checkpoint, config: ModelConfig) -> ModelConfig:
  """The config with the head that the files have, as `transformers` ties it.

  If config.json ties the head to the embedding, one of the two is enough. If
  both are there and differ, the head is one of its own.
  """
  names = (hf_names.EMBEDDING, hf_names.LM_HEAD)
  if not config.tied_head or hf_names.LM_HEAD not in checkpoint.shapes:
    return config
  if hf_names.EMBEDDING not in checkpoint.shapes:
    checkpoint.alias(*names)
    return config
  if hf_files.same_tensors(checkpoint, names):
    return config
  logging.warning(
    "%s: config.json says tie_word_embeddings, but %s differs from %s. The"
    " head is read as one of its own, as transformers does.",
    checkpoint.directory,
    *names[::-1],
  )
  return dataclasses.replace(config, tied_head=False)


def _require_fit(checkpoint, config, shapes, sources) -> None:
  """Checks names, shapes and dtypes; logs which tensors are not used."""
  hf_files.require_unquantized(checkpoint)
  wanted = {
    name: source.tensor_shape(shapes[path])
    for path, source in sources.items()
    for name in source.names
  }
  extra = sorted({*checkpoint.shapes, *checkpoint.others} - {*wanted})
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
  if missing or wrong or dtypes:
    raise ValueError(
      f"The weights in {checkpoint.directory} are not those that its"
      " config.json describes."
      + _listed("missing", missing)
      + _listed("extra", extra)
      + _listed("other shape", wrong)
      + _listed(f"dtype none of {', '.join(FLOATS)}", dtypes)
      + _way_out(missing, extra, checkpoint.directory)
    )
  _log_unused(checkpoint, config, extra)


def _way_out(missing: list[str], extra: list[str], directory: Path) -> str:
  if missing == [hf_names.LM_HEAD]:
    other = hf_scores.other_class(extra, directory)
    if other:
      return f"\n{other}"
    return (
      "\nIf the head of this model is its embedding, set tie_word_embeddings to"
      " true in config.json."
    )
  for prefix, saved in _WRAPPERS.items():
    if extra and all(name.startswith(prefix) for name in extra):
      return f"\nAll names begin with {prefix!r}: {saved}"
  return ""


def _log_unused(checkpoint, config, extra: list[str]) -> None:
  """Says which tensors `transformers` would not use for a language model."""
  known = {hf_names.SCORE} | ({hf_names.LM_HEAD} if config.tied_head else set())
  extra = [n for n in extra if n not in known]
  extra = [n for n in extra if not hf_names.IGNORED.fullmatch(n)]
  vision = [n for n in extra if hf_names.VISION.fullmatch(n)]
  if vision:
    logging.info(
      "%s: the %d tensors of the vision tower and its projector are skipped;"
      " only the language model is read.",
      checkpoint.directory,
      len(vision),
    )
  rest = sorted(set(extra) - set(vision))
  if rest:
    logging.warning(
      "%s holds tensors that a model of this config.json does not have. As in"
      " transformers, they are not used.%s",
      checkpoint.directory,
      _listed("not used", rest),
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
  tree = params_lib.flatten(base)
  if not head:
    tree.pop("lm_head", None)
  shapes = {p: tuple(x.shape) for p, x in tree.items()}
  sources = hf_names.sources(config, shapes)
  size = jnp.dtype(dtype).itemsize
  plan: list[list[tuple[str, str, int]]] = [[]]
  used = 0
  for path, source in sources.items():
    for i, name in enumerate(source.names):
      needs = math.prod(source.tensor_shape(shapes[path])) * size
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
  total = sum(math.prod(s) for s in shapes.values()) * size
  disk.require_room("the model", Path(directory), total)
  for file, entries in zip(files, plan, strict=True):
    tensors = {}
    for name, path, i in entries:
      leaf = tree[path][i] if sources[path].stacked else tree[path]
      array = np.asarray(hosts.to_host(leaf)).astype(dtype)
      array = array.T if sources[path].transposed else array
      tensors[name] = np.ascontiguousarray(array)
      weight_map[name] = file
    if file == files[-1]:
      tensors |= dict(extra or {})
      weight_map |= dict.fromkeys(extra or {}, file)
    path = Path(directory) / file
    with disk.writing(file, path.parent):
      safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
  if len(files) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files_lib.write_json(Path(directory) / INDEX, index)
  return files
