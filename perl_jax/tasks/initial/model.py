"""What a role starts from, whoever made it, and what it trains then."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.interop import hf_checkpoint, peft
from perl_jax.models import quantization
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.settings import shared


@dataclasses.dataclass(frozen=True)
class Start:
  """A base and, where the earlier stage trained one, an adapter on it.

  Attributes:
    config: Of the model.
    base: Parameters of the backbone.
    record: How to find the base again, JSON-able: {"kind": "random", "seed"},
      {"kind": "workdir", "path", "checkpoint", "role"} or
      {"kind": "huggingface", "path"}, each with the "dtype" it is kept in.
    fingerprint: Of the base.
    adapter: LoRA leaves to start from, or None.
    lora: Shape of that adapter, or None.
    head: Scalar head to start from, or None.
    tokenizer: Directory of the tokenizer.
    ensemble: Reward models in it; above 1 the leaves of `adapter` and `head`
      are stacked.
  """

  config: ModelConfig
  base: params_lib.Params
  record: Mapping[str, Any]
  fingerprint: str
  adapter: params_lib.Params | None
  lora: LoraSpec | None
  head: params_lib.Params | None
  tokenizer: Path
  ensemble: int = 1


def random_start(
  config: ModelConfig,
  seed: int,
  tokenizer: Path,
  dtype: str,
  mesh: Mesh | None = None,
) -> Start:
  """A base with random weights, drawn from the seed; see `random_base`."""
  base = random_base(config, seed, dtype, mesh)
  return Start(
    config=config,
    base=base,
    record={"kind": "random", "seed": seed, "dtype": dtype},
    fingerprint=params_lib.fingerprint(base),
    adapter=None,
    lora=None,
    head=None,
    tokenizer=tokenizer,
  )


def random_base(
  config: ModelConfig, seed: int, dtype: str, mesh: Mesh | None = None
) -> dict[str, Any]:
  """The base that a seed gives, the same bits on every mesh.

  Each device draws its part: the whole is nowhere. Without a mesh it is on the
  first device.
  """
  key = jax.random.fold_in(jax.random.key(seed), 0)

  def draw(key):
    return roles.init_base(key, config)

  layout = None
  if mesh is not None:
    layout = sharding.shardings(mesh, jax.eval_shape(draw, key))
  return stored(jax.jit(draw, out_shardings=layout)(key), dtype)


def stored(base: params_lib.Params, dtype: str) -> dict[str, Any]:
  """A frozen base in the dtype that it is kept in; see `quantization`."""
  storage = quantization.Storage(dtype)
  leaves = params_lib.flatten(base)
  found = params_lib.unflatten(
    {path: storage.put(path, leaf) for path, leaf in leaves.items()}
  )
  logging.info("%s", storage.describe())
  return found


def read_base(
  directory: str | os.PathLike, outside: "Outside"
) -> hf_checkpoint.Loaded:
  """A Hugging Face checkpoint, its base in the dtype that it is kept in."""
  storage = quantization.Storage(outside.dtype)
  found = hf_checkpoint.load(directory, mesh=outside.on(), storage=storage)
  logging.info("%s: %s", directory, storage.describe())
  return found


@dataclasses.dataclass(frozen=True)
class Outside:
  """How a base is read, and what a checkpoint that others made does not say.

  Attributes:
    base: Directory of a Hugging Face checkpoint, under adapters and as a start,
      or "".
    dtype: That a frozen base is kept in, one of `quantization.DTYPES`.
    mesh: Where it goes.
    model: Fields of `ModelConfig` that a checkpoint does not say: compute dtype
      and what trades memory for time.
  """

  base: str = ""
  dtype: str = "float32"
  mesh: Mesh | None = None
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def on(self) -> Mesh:
    """The mesh, or one of a single device."""
    if self.mesh is not None:
      return self.mesh
    return sharding.make_mesh(
      data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]
    )


def checkpoint_start(
  directory: str | os.PathLike, outside: Outside, known: "Start | None" = None
) -> Start:
  """A Hugging Face checkpoint: a base, and the head if it is a reward model.

  Args:
    directory: As `save_pretrained` writes it, the tokenizer included.
    outside: How to read it.
    known: A start that may stand on it already.
  """
  path = str(Path(directory).absolute())
  record = {"kind": "huggingface", "path": path, "dtype": outside.dtype}
  if known is not None and known.record == record:
    return dataclasses.replace(known, adapter=None, lora=None, head=None)
  found = read_base(path, outside)
  return Start(
    config=dataclasses.replace(found.config, **outside.model),
    base=found.base,
    record=record,
    fingerprint=params_lib.fingerprint(found.base),
    adapter=None,
    lora=None,
    head=found.head,
    tokenizer=Path(path),
  )


def adapter_start(
  directory: str | os.PathLike,
  field: str,
  outside: Outside,
  known: "Start | None" = None,
) -> Start:
  """A PEFT adapter on the checkpoint `outside.base`, or on the one it names.

  Args:
    directory: As PEFT's `save_pretrained` writes it.
    field: Config field that named it, for error messages.
    outside: How to read the base.
    known: A start whose base is shared if it is the same checkpoint.

  Raises:
    ValueError: No base is given, or not the one that the adapter names.
  """
  named = peft.base_of(directory)
  base = outside.base or named
  if not Path(base).is_dir():
    raise ValueError(
      f"config.{field}={str(directory)!r} is a PEFT adapter on {named!r}. Give"
      " the directory of that checkpoint: --config.base=PATH."
    )
  if Path(named).is_dir() and Path(named).resolve() != Path(base).resolve():
    raise ValueError(
      f"config.{field}={str(directory)!r} is a PEFT adapter on {named}, but"
      f" config.base={outside.base!r}. An adapter runs on its own base alone."
    )
  under = checkpoint_start(base, outside, known)
  found = peft.load_adapter(directory, under.config)
  return dataclasses.replace(
    under,
    adapter=sharding.place(outside.on(), found.leaves),
    lora=found.spec,
    head=found.head,
  )


def outside(config: shared.Config, mesh: jax.sharding.Mesh) -> Outside:
  """How checkpoints that others made are read; see `start.Outside`."""
  if config.base_dtype not in quantization.DTYPES:
    raise ValueError(
      f"config.base_dtype={config.base_dtype!r}: choose one of"
      f" {', '.join(quantization.DTYPES)}."
    )
  fields = ("attention", "dtype", "remat", "scan_unroll")
  return Outside(
    base=config.base,
    dtype=config.base_dtype,
    mesh=mesh,
    model={field: config.model[field] for field in fields},
  )
