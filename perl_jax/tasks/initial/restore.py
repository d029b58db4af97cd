"""Reads what an earlier stage trained, by its workdir.

Third-party checkpoints and adapters are read through the same function.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from perl_jax import buckets, checkpoint, roles, sharding
from perl_jax import params as params_lib
from perl_jax.interop import hf_names, peft, pretrained
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import adapter, manifest, model
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import ReadOptions, Start


def load(
  workdir: str | Path,
  which: str,
  role: str,
  field: str,
  shared_with: Start | None = None,
  options: ReadOptions | None = None,
) -> Start:
  """Reads what a stage trained, as the start of a role of the next one.

  Args:
    workdir: Workdir of the earlier stage, or the directory of a Hugging Face
      checkpoint or a PEFT adapter.
    which: "best" or "last" checkpoint.
    role: Role to read. It must be among those that the stage trained, except
      that a reward or value model may start from a policy.
    field: Config field that named the workdir, for error messages.
    shared_with: A start whose base is shared, not loaded again, if this stage
      was trained on it.
    options: How third-party checkpoints are read.

  Raises:
    FileNotFoundError: The workdir is not one of a stage that has run.
    ValueError: The base under an adapter is not the one it was trained on, or
      the workdir was written by an older version.
  """
  workdir, options = Path(workdir), options or ReadOptions()
  if not (workdir / manifest.MODEL_FILE).exists():
    start = None
    if peft.is_adapter(workdir):
      start = adapter.adapter_start(workdir, field, options, shared_with)
    elif pretrained.kind_of(workdir):
      start = model.checkpoint_start(workdir, options, shared_with)
    if start is not None:
      _require_answers(start, str(workdir), role, field)
      return start
  saved = manifest.read_model(workdir, field)
  if saved["ensemble"] > 1 and role != "reward":
    raise ValueError(
      f"config.{field}={str(workdir)!r} holds an ensemble of"
      f" {saved['ensemble']} reward models: no {role} can start from it."
      " Give the stage that it began with, or a single reward model."
    )
  if role == "policy" and role not in saved["trained"]:
    raise ValueError(
      f"config.{field}={str(workdir)!r} is a reward model, which answers"
      f" nothing. {_way_out(field, 'the stage that it began with')}."
    )
  trainable = _trainable(workdir, which, role, saved, options.mesh)
  if saved["tuning"] == "full":
    return _tuned_base(workdir, which, role, saved, trainable, options)
  dtype = saved["base"]["dtype"]
  if options.dtype not in ("float32", dtype):
    raise ValueError(
      f"config.{field}={str(workdir)!r} was trained on a base in {dtype}, and"
      f" config.base_dtype={options.dtype!r}. An adapter runs on the base it"
      " was trained on: train that stage again, or leave base_dtype out."
    )
  if (
    shared_with is not None and shared_with.fingerprint == saved["fingerprint"]
  ):
    base, source = shared_with.role.frozen, shared_with.source
  else:
    base, source = _load_base(workdir, saved, field, options)
  if source["kind"] != "workdir" or options.mesh is not None:
    # That base is on the mesh, and so must be what is merged into it.
    head = {k: v for k, v in trainable.items() if k == params_lib.HEAD}
    body = {k: v for k, v in trainable.items() if k != params_lib.HEAD}
    trainable = sharding.place(options.target_mesh(), body) | head
  return Start(
    role=roles.Role(_backbone(saved), trainable, base, saved["ensemble"]),
    source=source,
    fingerprint=saved["fingerprint"],
    tokenizer=workdir / manifest.TOKENIZER,
    score_at=saved["score_at"],
  )


def load_base(base: str, role: str, options: ReadOptions) -> Start:
  """`config.base` by itself, as the start of a role.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: It cannot be used, has an adapter beside it, or is a reward
      model and the role a policy.
  """
  adapter.require_plain(base, role)
  start = model.checkpoint_start(base, options)
  _require_answers(start, base, role, "base")
  return start


def _require_answers(start: Start, path: str, role: str, field: str) -> None:
  """Refuses a third party's reward model as a policy.

  It has no head for tokens: what is left to make them with, its embedding or
  the head of the base under an adapter, is not what it was trained with.
  """
  if role == "policy" and start.role.head is not None:
    raise ValueError(
      f"config.{field}={path!r} is a reward model (it has {hf_names.SCORE}, or"
      " the base under it has), which answers nothing."
      f" {_way_out(field, 'the language model that it was trained from')}."
    )


def _way_out(field: str, before: str) -> str:
  """What to give in the place of a reward model."""
  if field == "init":  # of an export
    return f"Set config.role='reward', or give {before}"
  return f"Give {before}"


def _backbone(saved: Mapping[str, Any]) -> roles.Backbone:
  return roles.Backbone(
    ModelConfig.from_dict(saved["model"]),
    LoraSpec.from_dict(saved["lora"]),
  )


def _trainable(workdir, which, role, saved, mesh) -> dict[str, Any]:
  """The tree of one role out of a checkpoint, which has those of `trained`."""
  like = {
    name: _trainable_shapes(_backbone(saved), name, saved)
    for name in saved["trained"]
  }
  # A whole model is read in parts; an adapter is small.
  mesh = mesh if saved["tuning"] == "full" else None
  found = checkpoint.load_trainable(workdir, which, like, mesh)
  return found[role if role in found else saved["trained"][0]]


def _trainable_shapes(backbone, role, saved):
  def make():
    key = jax.random.key(0)
    if saved["tuning"] == "full":
      body = roles.init_base(key, backbone.config)
    else:
      body = roles.init_adapter(key, backbone.config, backbone.lora)
    if role == "policy":
      return body
    return body | trainable_lib.new_head(backbone.config, saved["head"])

  shapes, members = jax.eval_shape(make), saved["ensemble"]
  if members == 1:
    return shapes
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), shapes
  )


def _tuned_base(workdir, which, role, saved, trainable, options) -> Start:
  """The start of a stage with full tuning: what it trained is a base."""
  body = {k: v for k, v in trainable.items() if k != params_lib.HEAD}
  head = {k: v for k, v in trainable.items() if k == params_lib.HEAD}
  if options.dtype != "float32":  # what it was trained in
    body = model.stored(body, options.dtype)
  source = {
    "kind": "workdir",
    "path": str(workdir.absolute()),
    "checkpoint": which,
    "role": role,
    "dtype": options.dtype,
  }
  backbone = roles.Backbone(_backbone(saved).config, LoraSpec())
  return Start(
    role=roles.Role(backbone, head, body),
    source=source,
    fingerprint=model.fingerprint(body),
    tokenizer=workdir / manifest.TOKENIZER,
    score_at=saved["score_at"],
  )


def _load_base(workdir, saved, field, options):
  """(base, where it comes from) of an adapter; see `Start.source`.

  A base that is read from files is looked for in `options.base` first, which
  may be where it was moved to; its fingerprint tells.
  """
  source = dict(saved["base"])
  options = dataclasses.replace(options, dtype=source["dtype"])
  found = {}
  for place, described in _places(workdir, source, options.base).items():
    base = _read_place(saved, described, field, options)
    fingerprint = model.fingerprint(base)
    if fingerprint == saved["fingerprint"]:
      if found or described != source:
        logging.info("%s: its base is read from %s", workdir, place)
      return base, described
    found[place] = fingerprint
    del base  # before the next is read
  listed = ", ".join(f"{p} now gives {f[:12]}" for p, f in found.items())
  raise ValueError(
    f"config.{field}={str(workdir)!r} was trained on a base with"
    f" fingerprint {saved['fingerprint'][:12]}, but {listed}. The base was"
    " trained further or replaced: restore it, give it as --config.base=PATH,"
    " or train this stage again."
  )


def _places(workdir, source, given: str) -> dict[str, dict[str, Any]]:
  """Where the base of a workdir may be, {place: `Start.source`}, in order."""
  if source["kind"] == "random":
    return {f"seed {source['seed']}": source}
  places = {}
  if given:
    described = model.source_of(given, source["dtype"])
    places = {described["path"]: described}
  own = str(manifest.beside(workdir, source["path"]))
  if source["kind"] == "workdir":
    if not Path(own).exists() and places:  # exported, perhaps
      return places
    return {own: source | {"path": own}}
  if not Path(own).exists() and not given:
    raise ValueError(
      f"The base {own} of {workdir} is gone. Give the directory where it is"
      " now: --config.base=PATH."
    )
  own_too = {own: source | {"path": own}} if Path(own).exists() else {}
  return places | own_too


def _read_place(saved, source, field, options) -> params_lib.Params:
  """The base that a `Start.source` describes."""
  if source["kind"] == "random":
    config, mesh = _backbone(saved).config, options.target_mesh()
    return model.random_base(config, source["seed"], source["dtype"], mesh)
  if source["kind"] != "workdir":
    return model.read_base(source["path"], options).frozen
  which, role = source["checkpoint"], source["role"]
  start = load(source["path"], which, role, field, options=options)
  return start.role.frozen


def origin(source: Mapping[str, Any]) -> dict[str, Any]:
  """Where a base came from before any stage of ours trained it.

  Args:
    source: `Start.source`.

  Returns:
    {"kind", "path"} of the first source, and "changed", whether a stage has
    trained the base in full since.
  """
  changed = False
  while source["kind"] == "workdir":
    changed, workdir = True, Path(source["path"])
    source = dict(manifest.read_model(workdir, "init")["base"])
    if source["kind"] == "workdir":
      source["path"] = str(manifest.beside(workdir, source["path"]))
  path = source.get("path", "")
  if buckets.is_address(path):
    path = str(buckets.present(buckets.path_of(path)))
  return {
    "kind": source["kind"],
    "path": path,
    "changed": changed,
  }


def model_in(
  directory: str | os.PathLike, field: str, base: str = ""
) -> ModelConfig | None:
  """The model of a workdir, checkpoint or adapter, without its weights.

  None if the directory is none of them, or the base of an adapter is not here.

  Args:
    directory: As `load` takes it.
    field: Config field that named it, for error messages.
    base: `config.base`, which goes before what an adapter names.
  """
  if (Path(directory) / manifest.MODEL_FILE).is_file():
    saved = manifest.read_model(directory, field)
    return ModelConfig.from_dict(saved["model"])
  if peft.is_adapter(directory):
    # A config.json beside it is that of its base while it was trained, which
    # may have been quantised.
    directory = base or peft.base_of(directory)
    if not directory:
      return None
  if pretrained.kind_of(directory):
    return pretrained.model_config(directory)
  return None


def load_anchor(config, policy: Start, options: ReadOptions) -> Start:
  """The anchor of a policy: what it was trained from, if a workdir says so.

  A policy whose origin is not known is its own anchor.
  """
  workdir = Path(config.policy.init)
  if not (workdir / manifest.MODEL_FILE).exists():
    return policy  # a third-party model
  saved = manifest.read_model(workdir, "policy.init")
  init, source = saved["init"], saved["base"]
  options = dataclasses.replace(options, dtype=source["dtype"])
  if not init["init"] and source["kind"] in pretrained.KINDS:
    bare = policy.with_adapter({}, LoraSpec())
    if policy.fingerprint == saved["fingerprint"]:
      return bare
    base, found = _load_base(workdir, saved, "policy.init", options)
    return dataclasses.replace(
      bare,
      role=dataclasses.replace(bare.role, frozen=base),
      source=found,
      fingerprint=saved["fingerprint"],
    )
  if not init["init"]:
    return policy
  if policy.source["kind"] in pretrained.KINDS:
    # Where the base of an adapter that it started from was found.
    options = dataclasses.replace(options, base=policy.source["path"])
  return load(
    manifest.beside(workdir, init["init"]),
    init["checkpoint"],
    "policy",
    "policy.init",
    shared_with=policy,
    options=options,
  )
