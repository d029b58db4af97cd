"""What a role starts from, whoever made it, and what it trains then."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from perl_jax import params as params_lib
from perl_jax import quantization, roles, sharding
from perl_jax.interop import hf_checkpoint, peft
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

HEADS = ("scalar", "likelihood")  # of a reward model; `roles.response_scores`


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


def new_head(config: ModelConfig, head: str) -> dict[str, Any]:
  """A head that says 0 everywhere, of one of the kinds `HEADS`."""
  return roles.init_head(config, likelihood=head == "likelihood")


def _head_of(start: Start, head: str) -> dict[str, Any]:
  fresh, found = new_head(start.config, head)[params_lib.HEAD], {}
  if start.head is not None:
    found = start.head[params_lib.HEAD]
  if found.keys() - fresh.keys():
    raise ValueError(
      f"The earlier stage has a head with {sorted(found)}, this config asks"
      f" for head={head!r}, which has {sorted(fresh)}. Set config.head to"
      " 'likelihood'."
    )
  return {params_lib.HEAD: fresh | found}


def trainable_of(
  start: Start, *, lora: LoraSpec, tuning: str, seed: int, head: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(trainable, frozen) of a role that begins at `start`.

  With LoRA: the start's adapter, or a new one. With full tuning: the base, an
  adapter of the start merged into it. The head, one of `HEADS` or "" for none,
  is the start's, or zero where that has none. Dropout may differ from the
  start's: it is no shape.

  Raises:
    ValueError: The start has an adapter of another shape than `lora`, or a base
      in too few bits to be trained.
  """
  with_head = _head_of(start, head) if head else {}
  if tuning == "full":
    if params_lib.is_quantized(start.base):
      raise ValueError(
        f"config.tuning='full' trains the base, which is kept in"
        f" {start.record['dtype']}: set config.base_dtype to 'float32' or"
        " 'bfloat16', or config.tuning to 'lora'."
      )
    base = start.base
    if start.adapter is not None:
      base = params_lib.merge(base, start.adapter, start.lora)
    # What is trained is kept in float32, whatever it was read in.
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
    return params_lib.partition(base | with_head, tuning)
  adapter = start.adapter
  if adapter is None:
    key = jax.random.fold_in(jax.random.key(seed), 1)
    adapter = jax.jit(roles.init_adapter, static_argnums=(1, 2))(
      key, start.config, lora
    )
  elif not lora.fits(start.lora):
    raise ValueError(
      f"The earlier stage has an adapter {start.lora}, this config asks for"
      f" {lora}. Set config.lora to the earlier values, or start anew from the"
      " stage before it."
    )
  tree = params_lib.combine(adapter, start.base) | with_head
  return params_lib.partition(tree, tuning)


def ensemble_of(
  start: Start,
  *,
  members: int,
  lora: LoraSpec,
  tuning: str,
  seed: int,
  head: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(stacked trainable, frozen) of several reward models; see `trainable_of`.

  Member k starts as a run with the seed `seed + k` would. With one member
  nothing is stacked.

  Raises:
    ValueError: The whole model is tuned, or the start is an ensemble of another
      size.
  """
  if start.ensemble not in (1, members):
    raise ValueError(
      f"The earlier stage has an ensemble of {start.ensemble}, this config asks"
      f" for config.ensemble={members}. Set it to {start.ensemble}, or start"
      " from the stage before it."
    )
  if members == 1:
    return trainable_of(start, lora=lora, tuning=tuning, seed=seed, head=head)
  if tuning != "lora":
    raise ValueError(
      f"config.ensemble={members} with config.tuning={tuning!r}: the members"
      " share one backbone. Use config.tuning='lora'."
    )
  made = [
    trainable_of(
      member_of(start, k), lora=lora, tuning=tuning, seed=seed + k, head=head
    )
    for k in range(members)
  ]
  return params_lib.stack([trainable for trainable, _ in made]), made[0][1]


def member_of(start: Start, number: int) -> Start:
  """A start with one member of its ensemble; what is no ensemble stays so."""
  if start.ensemble == 1:
    return start
  return dataclasses.replace(
    start,
    adapter=params_lib.member(start.adapter, number),
    head=params_lib.member(start.head, number),
    ensemble=1,
  )


def averaged(start: Start) -> Start:
  """An ensemble as one reward model; see `params.average_members`."""
  if start.ensemble == 1:
    return start
  tree, lora = params_lib.average_members(
    start.adapter | start.head, start.lora
  )
  head = {params_lib.HEAD: tree.pop(params_lib.HEAD)}
  return dataclasses.replace(
    start, adapter=tree, lora=lora, head=head, ensemble=1
  )
