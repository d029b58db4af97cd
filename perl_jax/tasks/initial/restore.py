"""What a stage starts from and what it leaves for the next.

Beside checkpoints a workdir holds `model.json`: the model, the adapter's shape,
how it was tuned, which base it stands on (by reference and fingerprint), and
`tokenizer/`. That is all that a later stage needs to be given its path.
"""

import dataclasses
import os
from pathlib import Path

import jax

from perl_jax import checkpoint, roles, sharding
from perl_jax import params as params_lib
from perl_jax.interop import hf_checkpoint, hf_config, peft
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import manifest, model
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import Outside, Start


def load(
  workdir: str | Path,
  which: str,
  role: str,
  field: str,
  known: Start | None = None,
  outside: Outside | None = None,
) -> Start:
  """Reads what a stage trained, as the start of a role of the next.

  Args:
    workdir: Of the earlier stage; or a Hugging Face checkpoint or a PEFT
      adapter.
    which: "best" or "last" checkpoint.
    role: Role to read; must be among those that the stage trained, except that
      a reward or value model may start from a policy.
    field: Config field that named the workdir, for error messages.
    known: A start whose base is shared, not loaded again, if this stage was
      trained on it.
    outside: How checkpoints of others are read.

  Raises:
    FileNotFoundError: The workdir is not one of a stage that has run.
    ValueError: The base under an adapter is not the one it was trained on.
  """
  workdir, outside = Path(workdir), outside or Outside()
  if not (workdir / manifest.MODEL_FILE).exists():
    if peft.is_adapter(workdir):
      return model.adapter_start(workdir, field, outside, known)
    if hf_checkpoint.is_checkpoint(workdir):
      return model.checkpoint_start(workdir, outside, known)
  described = manifest.read_model(workdir, field)
  config = ModelConfig.from_dict(described["model"])
  lora = LoraSpec.from_dict(described["lora"])
  tuning, trained = described["tuning"], described["trained"]
  # Written before there were ensembles: a single model.
  ensemble = described.get("ensemble", 1)
  if ensemble > 1 and role != "reward":
    raise ValueError(
      f"config.{field}={str(workdir)!r} holds an ensemble of {ensemble} reward"
      f" models: no {role} can start from it. Give the stage that it began"
      " with, or a single reward model."
    )
  like = {
    name: _trainable_shapes(config, lora, tuning, name, described["head"])
    for name in trained
  }
  like = like[trained[0]] if len(trained) == 1 else like
  if ensemble > 1:
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((ensemble, *x.shape), x.dtype), like
    )
  # A whole model is read in parts; an adapter is as small as it is.
  mesh = outside.mesh if tuning == "full" else None
  trainable = checkpoint.load_trainable(workdir, which, like, mesh)
  if len(trained) > 1:
    trainable = trainable[role if role in trained else "policy"]
  head = {k: v for k, v in trainable.items() if k == params_lib.HEAD} or None
  body = {k: v for k, v in trainable.items() if k != params_lib.HEAD}
  if tuning == "full":
    if outside.dtype != "float32":  # what it was trained in
      body = model.stored(body, outside.dtype)
    return Start(
      config=config,
      base=body,
      record={
        "kind": "workdir",
        "path": str(workdir.absolute()),
        "checkpoint": which,
        "role": role,
        "dtype": outside.dtype,
      },
      fingerprint=params_lib.fingerprint(body),
      adapter=None,
      lora=None,
      head=head,
      tokenizer=workdir / manifest.TOKENIZER,
    )
  dtype = described["base"]["dtype"]
  if outside.dtype not in ("float32", dtype):
    raise ValueError(
      f"config.{field}={str(workdir)!r} was trained on a base in {dtype}, and"
      f" config.base_dtype={outside.dtype!r}. An adapter runs on the base it"
      " was trained on: train that stage again, or leave base_dtype out."
    )
  if known is not None and known.fingerprint == described["fingerprint"]:
    base, record = known.base, known.record
  else:
    base, record = _load_base(workdir, described, config, field, outside)
  if record["kind"] != "workdir" or outside.mesh is not None:
    # That base lies on the mesh; what is merged into it has to, too.
    body = sharding.place(outside.on(), body)
  return Start(
    config=config,
    base=base,
    record=record,
    fingerprint=described["fingerprint"],
    adapter=body,
    lora=lora,
    head=head,
    tokenizer=workdir / manifest.TOKENIZER,
    ensemble=ensemble,
  )


def _load_base(workdir, described, config, field, outside):
  record = dict(described["base"])
  outside = dataclasses.replace(outside, dtype=record["dtype"])
  if record["kind"] == "random":
    base = model.random_base(
      config, record["seed"], record["dtype"], outside.on()
    )
  elif record["kind"] == "huggingface":
    base = model.read_base(record["path"], outside).base
  else:
    path = Path(os.path.normpath(workdir.absolute() / record["path"]))
    base = load(
      path, record["checkpoint"], record["role"], field, outside=outside
    ).base
    record["path"] = str(path)
  found = params_lib.fingerprint(base)
  if found != described["fingerprint"]:
    raise ValueError(
      f"config.{field}={str(workdir)!r} was trained on a base with"
      f" fingerprint {described['fingerprint'][:12]}, but {record} now gives"
      f" {found[:12]}. The base was trained further or replaced: restore it,"
      " or train this stage again."
    )
  return base, record


def _trainable_shapes(config, lora, tuning, role, head):
  def make():
    key = jax.random.key(0)
    body = (
      roles.init_base(key, config)
      if tuning == "full"
      else roles.init_adapter(key, config, lora)
    )
    return (
      body if role == "policy" else body | trainable_lib.new_head(config, head)
    )

  return jax.eval_shape(make)


def model_in(directory: str | os.PathLike) -> ModelConfig | None:
  """The model of a run's workdir or a Hugging Face checkpoint; None of others.

  No weights are read.
  """
  if (Path(directory) / manifest.MODEL_FILE).is_file():
    described = manifest.read_model(directory, "init")
    return ModelConfig.from_dict(described["model"])
  if hf_checkpoint.is_checkpoint(directory):
    hf = hf_config.load_hf_config(directory)
    return hf_config.model_config(hf, str(Path(directory) / "config.json"))
  return None


def load_anchor(config, policy: Start, outside: Outside) -> Start:
  """What a policy went on from, or the policy itself if that is not known."""
  workdir = Path(config.policy.init)
  if not (workdir / manifest.MODEL_FILE).exists():
    return policy  # made by others: nothing says what it went on from
  described = manifest.read_model(workdir, "policy.init")
  init, base = described["init"], described["base"]
  outside = dataclasses.replace(outside, dtype=base["dtype"])
  if not init["init"] and base["kind"] == "huggingface":
    return model.checkpoint_start(base["path"], outside, policy)
  if not init["init"]:
    return policy
  return load(
    workdir / init["init"],
    init["checkpoint"],
    "policy",
    "policy.init",
    known=policy,
    outside=outside,
  )
