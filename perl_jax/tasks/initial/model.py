"""Bases that nobody here has trained: random weights and third-party files.

A `Start` is a role with the origin of its base. `restore.load` gives the same
for what an earlier stage has trained.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from perl_jax import hosts, roles, sharding
from perl_jax import params as params_lib
from perl_jax.data.text import files as tokenizer_files
from perl_jax.data.text import tokenization
from perl_jax.interop import pretrained
from perl_jax.interop.storage import Storage
from perl_jax.models import quantization
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.reporting import phases
from perl_jax.tasks.settings import shared, streams


@dataclasses.dataclass(frozen=True)
class Start:
  """What a stage or a role starts from.

  Attributes:
    role: The model. `role.trainable` holds the adapter and the scalar head
      that are there already, if any; `role.frozen` is the base.
    source: How to find the base again, as JSON: {"kind": "random", "seed"},
      {"kind": "workdir", "path", "checkpoint", "role"} or
      {"kind", "path"} of a third party's files, the kind one of
      `pretrained.KINDS`; each with the "dtype" it is stored in.
    fingerprint: SHA-256 of the base, `params.fingerprint`.
    tokenizer: Directory of the tokenizer, or a GGUF file that has it in it.
    template: File of a chat template that is used instead of the tokenizer's,
      or None.
    model_files: Where config.json and generation_config.json of the model lie
      (or its GGUF file), or None if that is beside the tokenizer.
    score_at: Where the score of a reward model is read, one of
      `settings.reward.SCORE_AT`. Those of others are read at the end of the
      template.
    unread_id: Id of the token that the reward model of others takes for
      padding, and does not read at the end; None for those of workdirs.
  """

  role: roles.Role
  source: Mapping[str, Any]
  fingerprint: str
  tokenizer: Path
  template: Path | None = None
  model_files: Path | None = None
  score_at: str = "template"
  unread_id: int | None = None

  @property
  def config(self) -> ModelConfig:
    """Shapes and switches of the transformer."""
    return self.role.backbone.config

  def load_tokenizer(self) -> tokenization.Tokenization:
    """The tokenizer of the model.

    Raises:
      ValueError: It gives tokens in every prompt or response that the model has
        no embedding for.
    """
    stop_ids = None
    if self.model_files is not None:
      stop_ids = tokenizer_files.stop_ids(self.model_files)
    return tokenization.load_tokenizer(
      self.tokenizer,
      self.config.vocab_size,
      template=self.template,
      model=self.model_files,
      stop_ids=stop_ids,
      unread_id=self.unread_id,
    )

  def with_adapter(self, trainable: params_lib.Params, lora: LoraSpec):
    """The same base with another adapter and head, of the shape `lora`."""
    role = dataclasses.replace(
      self.role,
      backbone=dataclasses.replace(self.role.backbone, lora=lora),
      trainable=trainable,
      members=1,
    )
    return dataclasses.replace(self, role=role)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """How a base is read, and what a third-party checkpoint does not say.

  Attributes:
    base: Directory of a Hugging Face checkpoint: the base of PEFT adapters, and
      a start by itself; or "".
    dtype: Storage of the frozen base, one of `quantization.DTYPES`.
    mesh: Mesh that its arrays are placed on; None is the first device.
    model: Fields of `ModelConfig` that a checkpoint does not determine: the
      compute dtype, and what trades memory for time.
  """

  base: str = ""
  dtype: str = "float32"
  mesh: Mesh | None = None
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def target_mesh(self) -> Mesh:
    """The mesh, or one of a single device."""
    if self.mesh is not None:
      return self.mesh
    return sharding.make_mesh(
      data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]
    )


def read_options(config: shared.Config, mesh: Mesh) -> ReadOptions:
  """The read options of a config.

  Raises:
    ValueError: `config.base_dtype` is unknown.
  """
  if config.base_dtype not in quantization.DTYPES:
    raise ValueError(
      f"config.base_dtype={config.base_dtype!r}: choose one of"
      f" {', '.join(quantization.DTYPES)}."
    )
  fields = ("attention", "dtype", "remat", "scan_unroll")
  return ReadOptions(
    base=config.base,
    dtype=config.base_dtype,
    mesh=mesh,
    model={field: config.model[field] for field in fields},
  )


def random_start(
  config: ModelConfig,
  seed: int,
  tokenizer: Path,
  dtype: str,
  mesh: Mesh | None = None,
) -> Start:
  """A base with random weights, drawn from the seed; see `random_base`."""
  base = random_base(config, seed, dtype, mesh)
  return _bare(
    base,
    config,
    source={"kind": "random", "seed": seed, "dtype": dtype},
    tokenizer=tokenizer,
  )


def _bare(base, config, *, source, tokenizer, head=None) -> Start:
  backbone = roles.Backbone(config, LoraSpec())
  role = roles.Role(backbone, head or {}, base)
  return Start(role, source, fingerprint(base), tokenizer)


def fingerprint(base: params_lib.Params) -> str:
  """`params.fingerprint` of a base that may be spread over processes."""
  with phases.phase("taking the fingerprint of the base"):
    return params_lib.fingerprint(base, hosts.to_host)


def random_base(
  config: ModelConfig, seed: int, dtype: str, mesh: Mesh | None = None
) -> dict[str, Any]:
  """The base that a seed gives, the same bits on every mesh.

  Each device draws its part, so that the whole is never on one device. Without
  a mesh the base is on the first device.
  """
  key = streams.key_of(seed, streams.Stream.BASE)

  def draw(key):
    return roles.init_base(key, config)

  layout = None
  if mesh is not None:
    layout = sharding.shardings(mesh, jax.eval_shape(draw, key))
  return stored(jax.jit(draw, out_shardings=layout)(key), dtype)


def stored(base: params_lib.Params, dtype: str) -> dict[str, Any]:
  """A frozen base in its storage dtype; see `models.quantization`."""
  storage = Storage(dtype)
  leaves = params_lib.flatten(base)
  found = params_lib.unflatten(
    {path: storage.put(path, leaf) for path, leaf in leaves.items()}
  )
  logging.info("%s", storage.describe())
  return found


def read_base(directory: str | os.PathLike, options: ReadOptions) -> roles.Role:
  """A Hugging Face checkpoint with its base in the storage dtype."""
  storage = Storage(options.dtype)
  with phases.phase(f"reading {directory}"):
    found = pretrained.load(
      directory, mesh=options.target_mesh(), storage=storage
    )
  logging.info("%s: %s", directory, storage.describe())
  return found


def checkpoint_start(
  directory: str | os.PathLike,
  options: ReadOptions,
  shared_with: Start | None = None,
) -> Start:
  """A third party's checkpoint: a base, and the head of a reward model.

  Args:
    directory: Path of a directory as `save_pretrained` writes it, the tokenizer
      included; or of a GGUF file.
    options: How to read it.
    shared_with: A start that may have the same base in memory already.
  """
  source = source_of(directory, options.dtype)
  path = source["path"]
  tokenizer = pretrained.tokenizer_of(path)
  if shared_with is not None and _same_place(shared_with.source, source):
    bare = shared_with.with_adapter({}, LoraSpec())
    return dataclasses.replace(
      bare, tokenizer=tokenizer, template=None, model_files=None
    )
  found = read_base(path, options)
  start = _bare(
    found.frozen,
    dataclasses.replace(found.backbone.config, **options.model),
    source=source,
    tokenizer=tokenizer,
    head=found.head,
  )
  return start if found.head is None else with_unread(start)


def with_unread(start: Start) -> Start:
  """A reward model of others with the token that it takes for padding."""
  return dataclasses.replace(
    start, unread_id=pretrained.pad_id(start.source["path"])
  )


def source_of(directory: str | os.PathLike, dtype: str) -> dict[str, Any]:
  """The `Start.source` of a base that is read from somebody else's files."""
  path = str(pretrained.place_of(directory))
  kind = pretrained.kind_of(path) or pretrained.HUGGING_FACE
  return {"kind": kind, "path": path, "dtype": dtype}


def _same_place(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
  """Whether two sources are one directory, by whatever path."""
  if {**first, "path": ""} != {**second, "path": ""}:
    return False
  return Path(first["path"]).resolve() == Path(second["path"]).resolve()
