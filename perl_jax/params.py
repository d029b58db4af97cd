"""Parameter trees: splitting into trainable and frozen, merging, fingerprints.

A parameter tree is a nested dict of arrays. The tree of the backbone is the
*base*; what a role adds to it (adapter, scalar head) or replaces in it (full
tuning) is its *trainable* tree. `combine(trainable, frozen)` is what a model
reads. Splits are by path, and cover every leaf.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from perl_jax.models import lora as lora_lib
from perl_jax.models import quantization

Params = Mapping[str, Any]
TUNINGS = ("lora", "full")
HEAD = "head"
_PIECE = 64 * 2**20  # bytes of a leaf that are fetched at once


def flatten(tree: Params) -> dict[str, Any]:
  """Flattens nested dicts to {"layers/attention/q/kernel": leaf}, by path."""
  return dict(sorted(traverse_util.flatten_dict(dict(tree), sep="/").items()))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(leaves), sep="/")


def is_adapter(path: str) -> bool:
  """Whether a path names a LoRA leaf."""
  return path.rsplit("/", 1)[-1] in lora_lib.LEAVES


def is_head(path: str) -> bool:
  """Whether a path belongs to a scalar head."""
  return path.split("/", 1)[0] == HEAD


def partition(
  params: Params, tuning: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a tree into (trainable, frozen).

  Args:
    params: Base, adapter and head of one role.
    tuning: "lora" trains adapters and the head; "full" trains every leaf but
      has no adapters.

  Raises:
    ValueError: `tuning` is unknown, nothing would be trained, or `tuning` is
      "full" and the tree has adapters.
  """
  if tuning not in TUNINGS:
    raise ValueError(f"tuning={tuning!r}: choose one of {TUNINGS}.")
  leaves = flatten(params)
  adapters = [path for path in leaves if is_adapter(path)]
  if tuning == "full" and adapters:
    raise ValueError(
      "tuning='full' trains the base itself, but the tree has adapters:"
      f" {adapters[:4]}. Merge them first or use tuning='lora'."
    )
  if tuning == "lora" and not adapters:
    raise ValueError(
      "tuning='lora' but the tree has no adapter, so that nothing but a head"
      " would be trained. Set lora.rank above 0, or tuning='full'."
    )
  trainable, frozen = {}, {}
  for path, leaf in leaves.items():
    chosen = tuning == "full" or is_adapter(path) or is_head(path)
    (trainable if chosen else frozen)[path] = leaf
  return unflatten(trainable), unflatten(frozen)


def combine(trainable: Params, frozen: Params) -> dict[str, Any]:
  """The union of two trees that share no leaf.

  Raises:
    ValueError: A path is in both; the paths are listed.
  """
  first, second = flatten(trainable), flatten(frozen)
  both = sorted(set(first) & set(second))
  if both:
    raise ValueError(f"Leaves in trainable and frozen alike: {both[:8]}.")
  return unflatten(first | second)


def has_adapters(params: Params) -> bool:
  """Whether any leaf is a LoRA leaf."""
  return any(map(is_adapter, flatten(params)))


def widen(params: Params, dtype: str) -> dict[str, Any]:
  """Every leaf, quantised or not, as an array of a float dtype, by float32."""
  return unflatten(
    {
      path: quantization.as_array(leaf, "float32").astype(dtype)
      for path, leaf in flatten(params).items()
    }
  )


def is_quantized(params: Params) -> bool:
  """Whether any leaf is a quantised kernel."""
  return any(map(quantization.is_quantized, flatten(params).values()))


def count(params: Params) -> int:
  """Number of parameters; a quantised kernel counts as before quantisation."""
  leaves = jax.tree.leaves(params, is_leaf=quantization.is_quantized)
  return sum(int(np.prod(x.shape)) for x in leaves)


def nbytes(params: Params) -> int:
  """Bytes of all leaves, including the scales of quantised kernels."""
  return quantization.nbytes(params)


def fingerprint(
  params: Params, to_host: Callable[[Any], Any] = np.asarray
) -> str:
  """SHA-256 over paths, shapes, dtypes and bytes, as hex.

  Two trees have the same fingerprint if and only if (but for collisions) they
  have the same leaves with the same bits. Of a large leaf, as the layers in one
  stack, a few rows at a time are on the host, if no mesh divides the rows.

  Args:
    params: Any tree of arrays; quantised kernels count with their scales.
    to_host: Returns one array as a whole NumPy array. Where arrays may be
      spread over processes, `hosts.to_host`, called by all of them.
  """
  digest = hashlib.sha256()
  for path, leaf in flatten(params).items():
    parts = {path: leaf}
    if quantization.is_quantized(leaf):
      parts = {f"{path}/qvalue": leaf.qvalue, f"{path}/scale": leaf.scale}
    for name, part in parts.items():
      digest.update(f"{name}:{part.shape}:{part.dtype}\n".encode())
      for piece in pieces(part):
        digest.update(np.asarray(to_host(piece)).tobytes())
  return digest.hexdigest()


def pieces(array):
  """Runs of the rows of an array, in order, of `_PIECE` bytes at most.

  One row is not divided, nor is an array whose rows lie on several devices.
  """
  if array.nbytes <= _PIECE or not _is_whole(array):
    yield array
    return
  rows = max(1, len(array) * _PIECE // array.nbytes)
  for start in range(0, len(array), rows):
    count = min(rows, len(array) - start)
    if isinstance(array, jax.Array):
      yield _rows(array, start, count)
    else:
      yield array[start : start + count]


def _is_whole(array):
  """Whether each device that has a part of it has a part of every row."""
  if not isinstance(array, jax.Array):
    return True
  return array.sharding.shard_shape(array.shape)[0] == len(array)


@functools.partial(jax.jit, static_argnums=2)
def _rows(array, start, count):
  # One program for all pieces: where it starts is no constant.
  return jax.lax.dynamic_slice_in_dim(array, start, count)


def require_same_leaves(expected: Params, found: Params, what: str) -> None:
  """Checks that two trees have the same paths and shapes.

  Raises:
    ValueError: Lists what is missing, what is extra and what differs in shape.
  """
  expected, found = flatten(expected), flatten(found)
  missing = sorted(set(expected) - set(found))
  extra = sorted(set(found) - set(expected))
  shapes = [
    f"{path}: {tuple(found[path].shape)}, expected {tuple(leaf.shape)}"
    for path, leaf in expected.items()
    if path in found and tuple(found[path].shape) != tuple(leaf.shape)
  ]
  if missing or extra or shapes:
    raise ValueError(
      f"{what} does not fit.\n  missing: {missing}\n  extra: {extra}\n"
      f"  shapes: {shapes}"
    )


def _delta(lora_a: jax.Array, lora_b: jax.Array, scale: float) -> jax.Array:
  """scale * A B in float32, with leading layer axes kept."""
  return scale * jnp.einsum(
    "...ir,...ro->...io",
    lora_a.astype(jnp.float32),
    lora_b.astype(jnp.float32),
    precision="highest",
  )


def merge(
  base: Params, adapters: Params, spec: lora_lib.LoraSpec, dtype: str = ""
) -> dict[str, Any]:
  """Merges adapters into the kernels of the base: W + scale A B.

  The sum is computed in float32, leaf by leaf, and cast back. A quantised
  kernel becomes float32.

  Args:
    base: Parameters of the backbone, without adapters.
    adapters: LoRA leaves; other leaves (a head) are ignored.
    spec: Shape of the adapters, which gives the scale.
    dtype: Float dtype of every leaf of the result; "" keeps those of the base.
  """
  leaves, added = flatten(base), flatten(adapters)
  for path, leaf in leaves.items():
    stem = path.removesuffix("/kernel")
    lora_a = added.get(f"{stem}/lora_a") if path.endswith("/kernel") else None
    if lora_a is None and not dtype:
      continue
    merged = quantization.as_array(leaf, "float32")
    if lora_a is not None:
      merged += _delta(lora_a, added[f"{stem}/lora_b"], spec.scale)
    # Quantised again, the sum would lose more than the adapter adds.
    kept = jnp.float32 if quantization.is_quantized(leaf) else leaf.dtype
    leaves[path] = merged.astype(dtype or kept)
  return unflatten(leaves)


# An ensemble: trees of the same leaves, stacked along a leading axis.


def stack(trees: Sequence[Params]) -> dict[str, Any]:
  """Stacks trees of the same leaves to one with leaves `[members, ...]`."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(stacked: Params, number: int) -> dict[str, Any]:
  """The tree of one member of a stack."""
  return jax.tree.map(lambda leaf: leaf[number], stacked)


def average_members(
  stacked: Params, spec: lora_lib.LoraSpec
) -> tuple[dict[str, Any], lora_lib.LoraSpec]:
  """Averages the kernel updates of an ensemble's adapters, and the heads.

  mean_k scale A_k B_k = scale' [A_1 .. A_K] [B_1; ..; B_K]

  Averaging A and B separately would add products of A and B of different
  members. This is exact: one adapter of rank K R, with the A side by side and
  the B below each other, all unchanged, since scale' = scale / K follows from
  its rank: alpha' = alpha, and for rsLoRA alpha' = alpha / sqrt(K).

  Args:
    stacked: LoRA leaves and heads of K members, from `stack`.
    spec: Shape of each adapter.

  Returns:
    The averaged tree, float32, and the shape of its adapter.
  """
  leaves, found = flatten(stacked), {}
  for path, leaf in leaves.items():
    members = [leaf[i].astype(jnp.float32) for i in range(leaf.shape[0])]
    if path.endswith("/lora_a"):
      found[path] = jnp.concatenate(members, axis=-1)
    elif path.endswith("/lora_b"):
      found[path] = jnp.concatenate(members, axis=-2)
    else:
      found[path] = sum(members) / len(members)
  alpha = spec.alpha / len(members) ** 0.5 if spec.rslora else spec.alpha
  wide = dataclasses.replace(spec, rank=spec.rank * len(members), alpha=alpha)
  return unflatten(found), wide
