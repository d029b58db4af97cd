"""What a stage starts from and what it leaves for the next.

Beside checkpoints a workdir holds `model.json`: the model, the adapter's shape,
how it was tuned, which base it stands on (by reference and fingerprint), and
`tokenizer/`. That is all that a later stage needs to be given its path.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from perl_jax import checkpoint, hosts, roles, sharding
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.interop import hf_checkpoint, peft
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.start import Outside, Start

MODEL_FILE = "model.json"
TOKENIZER = "tokenizer"
# Beside a model's weights lie the files of its tokenizer.
_TOKENIZER_FILES = (
  "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
  "merges.txt", "*.model", "chat_template*", "generation_config.json",
  "config.json",
)  # fmt: skip
_FIELDS = (
  "model", "lora", "tuning", "trained", "head", "init", "base", "fingerprint",
)  # fmt: skip


def write_model(
  workdir: Path,
  start: Start,
  *,
  lora: LoraSpec,
  tuning: str,
  trained: tuple[str, ...],
  init: Mapping[str, Any],
  head: str = "scalar",
  ensemble: int = 1,
) -> None:
  """Writes model.json and the tokenizer of a stage; process 0 alone.

  Args:
    workdir: Of the stage.
    start: What it starts from.
    lora: Shape of the adapters that it trains.
    tuning: "lora" or "full".
    trained: Roles in its checkpoint: ("policy",), ("reward",) or
      ("policy", "value").
    init: {"init": workdir of the stage that it went on from or "",
      "checkpoint"}; an evaluation finds the anchor there.
    head: Of a reward model, one of `HEADS`.
    ensemble: Reward models in a checkpoint, stacked if there are several.
  """
  if not hosts.is_primary():
    return  # until the others are let go on: at the end of `setup.preparing`
  init = dict(init)
  if init["init"]:
    init["init"] = os.path.relpath(Path(init["init"]).absolute(), workdir)
  record = dict(start.record)
  if record["kind"] == "workdir":
    # Relative, so that a tree of runs can be moved as a whole.
    record["path"] = os.path.relpath(record["path"], workdir)
  if start.tokenizer.resolve() != (workdir / TOKENIZER).resolve():
    copy_tokenizer(start.tokenizer, workdir / TOKENIZER)
  metrics_lib.write_json(
    workdir / MODEL_FILE,
    {
      "model": start.config.to_dict(),
      "lora": lora.to_dict(),
      "tuning": tuning,
      "trained": list(trained),
      "head": head,
      "ensemble": ensemble,
      "init": init,
      "base": record,
      "fingerprint": start.fingerprint,
    },
  )


def copy_tokenizer(source: Path, target: Path) -> None:
  """Copies the files of a tokenizer, and not the weights beside them."""
  target.mkdir(parents=True, exist_ok=True)
  for pattern in _TOKENIZER_FILES:
    for path in source.glob(pattern):
      if path.is_file():
        shutil.copy(path, target / path.name)


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
  if not (workdir / MODEL_FILE).exists():
    if peft.is_adapter(workdir):
      return start_lib.adapter_start(workdir, field, outside, known)
    if hf_checkpoint.is_checkpoint(workdir):
      return start_lib.checkpoint_start(workdir, outside, known)
  described = read_model(workdir, field)
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
      body = start_lib.stored(body, outside.dtype)
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
      tokenizer=workdir / TOKENIZER,
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
    tokenizer=workdir / TOKENIZER,
    ensemble=ensemble,
  )


def read_model(workdir: str | Path, field: str) -> dict[str, Any]:
  """The contents of a stage's model.json.

  Raises:
    FileNotFoundError: There is none; names the field and the way out.
    ValueError: It lacks fields, as one of another version does.
  """
  path = Path(workdir) / MODEL_FILE
  if not path.is_file():
    raise FileNotFoundError(
      f"config.{field}={str(workdir)!r}: {path} does not exist. It must be"
      " the workdir of an sft, reward, rl or dpo run, a Hugging Face"
      " checkpoint or a PEFT adapter."
    )
  described = json.loads(path.read_text())
  missing = sorted(set(_FIELDS) - described.keys())
  if "dtype" not in described.get("base", {}):
    missing.append("base.dtype")
  if missing:
    raise ValueError(
      f"config.{field}={str(workdir)!r}: {path} has no {', '.join(missing)}. It"
      " was written by another version: run that stage again."
    )
  return described


def _load_base(workdir, described, config, field, outside):
  record = dict(described["base"])
  outside = dataclasses.replace(outside, dtype=record["dtype"])
  if record["kind"] == "random":
    base = start_lib.random_base(
      config, record["seed"], record["dtype"], outside.on()
    )
  elif record["kind"] == "huggingface":
    base = start_lib.read_base(record["path"], outside).base
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
    return body if role == "policy" else body | start_lib.new_head(config, head)

  return jax.eval_shape(make)
