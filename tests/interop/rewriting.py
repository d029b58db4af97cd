"""Checkpoints rewritten in the ways in which others save them."""

import json

import numpy as np
import safetensors.numpy

from perl_jax.interop import hf_files

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensors_of(directory):
  return safetensors.numpy.load_file(directory / hf_files.SINGLE)


def rename(change):
  """A case in which the tensors have other names."""

  def apply(directory):
    found = tensors_of(directory)
    write(directory, {change(name): found[name] for name in found})

  return apply


def add(**more):
  """A case with further tensors; dots as two underscores."""

  def apply(directory):
    extra = {n.replace("__", "."): v for n, v in more.items()}
    write(directory, tensors_of(directory) | extra)

  return apply


def write(directory, tensors, file=hf_files.SINGLE, metadata=None):
  safetensors.numpy.save_file(tensors, directory / file, metadata=metadata)


def cast(dtype):
  def apply(directory):
    found = tensors_of(directory)
    write(directory, {n: v.astype(dtype) for n, v in found.items()})

  return apply


def shards(directory, folder="", listed=None):
  """Three files and their index; the single one goes."""
  names = sorted(found := tensors_of(directory))
  weight_map = {}
  (directory / folder).mkdir(exist_ok=True)
  for i in range(3):
    file = f"{folder}model-{i}.safetensors"
    write(directory, {n: found[n] for n in names[i::3]}, file)
    weight_map |= dict.fromkeys(names[i::3], file)
  (directory / hf_files.SINGLE).unlink()
  index = {"metadata": {}, "weight_map": weight_map | (listed or {})}
  (directory / hf_files.INDEX).write_text(json.dumps(index))


def index_lists_more(directory):
  shards(directory, listed={"model.extra": "model-0.safetensors"})


def index_names_another_shard(directory):
  shards(directory, listed={EMBEDDING: "model-2.safetensors"})


def shards_in_a_folder(directory):
  shards(directory, folder="shards/")


def single_beside_shards(directory):
  """The single file counts, whatever else is there."""
  kept = tensors_of(directory)
  write(directory, {n: v + 1 for n, v in kept.items()})
  shards(directory)
  write(directory, kept)


def named_in_config(directory):
  (directory / hf_files.SINGLE).rename(directory / "weights.safetensors")
  path = directory / "config.json"
  fields = json.loads(path.read_text())
  fields["transformers_weights"] = "weights.safetensors"
  path.write_text(json.dumps(fields))
  write(directory, {"unused": np.zeros(1, np.float32)})


def snapshot(directory):
  """The hub's cache: links with the files' names to files without."""
  blobs = directory.parent / "blobs"
  blobs.mkdir()
  for i, path in enumerate(sorted(directory.iterdir())):
    path.rename(blobs / str(i))
    path.symlink_to(blobs / str(i))
