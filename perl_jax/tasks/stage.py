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

from perl_jax import checkpoint, roles
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec

HEADS = ("scalar", "likelihood")  # of a reward model; `roles.response_scores`
MODEL_FILE = "model.json"
TOKENIZER = "tokenizer"
_FIELDS = (
  "model", "lora", "tuning", "trained", "head", "init", "base", "fingerprint",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Start:
  """A base and, where the earlier stage trained one, an adapter on it.

  Attributes:
    config: Of the model.
    base: Parameters of the backbone.
    record: How to find the base again, JSON-able: {"kind": "random", "seed"}
      or {"kind": "workdir", "path", "checkpoint"}.
    fingerprint: Of the base.
    adapter: LoRA leaves to start from, or None.
    lora: Shape of that adapter, or None.
    head: Scalar head to start from, or None.
    tokenizer: Directory of the tokenizer.
  """

  config: ModelConfig
  base: params_lib.Params
  record: Mapping[str, Any]
  fingerprint: str
  adapter: params_lib.Params | None
  lora: LoraSpec | None
  head: params_lib.Params | None
  tokenizer: Path


def random_start(config: ModelConfig, seed: int, tokenizer: Path) -> Start:
  """A base with random weights, drawn from the seed."""
  base = _random_base(config, seed)
  return Start(
    config=config,
    base=base,
    record={"kind": "random", "seed": seed},
    fingerprint=params_lib.fingerprint(base),
    adapter=None,
    lora=None,
    head=None,
    tokenizer=tokenizer,
  )


def _random_base(config, seed):
  key = jax.random.fold_in(jax.random.key(seed), 0)
  return jax.jit(roles.init_base, static_argnums=1)(key, config)


def write_model(
  workdir: Path,
  start: Start,
  *,
  lora: LoraSpec,
  tuning: str,
  trained: tuple[str, ...],
  init: Mapping[str, Any],
  head: str = "scalar",
) -> None:
  """Writes model.json and the tokenizer of a stage.

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
  """
  init = dict(init)
  if init["init"]:
    init["init"] = os.path.relpath(Path(init["init"]).absolute(), workdir)
  record = dict(start.record)
  if record["kind"] == "workdir":
    # Relative, so that a tree of runs can be moved as a whole.
    record["path"] = os.path.relpath(record["path"], workdir)
  if start.tokenizer.resolve() != (workdir / TOKENIZER).resolve():
    shutil.copytree(start.tokenizer, workdir / TOKENIZER, dirs_exist_ok=True)
  metrics_lib.write_json(
    workdir / MODEL_FILE,
    {
      "model": start.config.to_dict(),
      "lora": lora.to_dict(),
      "tuning": tuning,
      "trained": list(trained),
      "head": head,
      "init": init,
      "base": record,
      "fingerprint": start.fingerprint,
    },
  )


def load(
  workdir: str | Path,
  which: str,
  role: str,
  field: str,
  known: Start | None = None,
) -> Start:
  """Reads what a stage trained, as the start of a role of the next.

  Args:
    workdir: Of the earlier stage.
    which: "best" or "last" checkpoint.
    role: Role to read; must be among those that the stage trained, except that
      a reward or value model may start from a policy.
    field: Config field that named the workdir, for error messages.
    known: A start whose base is shared, not loaded again, if this stage was
      trained on it.

  Raises:
    FileNotFoundError: The workdir is not one of a stage that has run.
    ValueError: The base under an adapter is not the one it was trained on.
  """
  workdir = Path(workdir)
  described = read_model(workdir, field)
  config = ModelConfig.from_dict(described["model"])
  lora = LoraSpec.from_dict(described["lora"])
  tuning, trained = described["tuning"], described["trained"]
  like = {
    name: _trainable_shapes(config, lora, tuning, name, described["head"])
    for name in trained
  }
  like = like[trained[0]] if len(trained) == 1 else like
  trainable = checkpoint.load_trainable(workdir, which, like)
  if len(trained) > 1:
    trainable = trainable[role if role in trained else "policy"]
  head = {k: v for k, v in trainable.items() if k == params_lib.HEAD} or None
  body = {k: v for k, v in trainable.items() if k != params_lib.HEAD}
  if tuning == "full":
    return Start(
      config=config,
      base=body,
      record={
        "kind": "workdir",
        "path": str(workdir.absolute()),
        "checkpoint": which,
        "role": role,
      },
      fingerprint=params_lib.fingerprint(body),
      adapter=None,
      lora=None,
      head=head,
      tokenizer=workdir / TOKENIZER,
    )
  if known is not None and known.fingerprint == described["fingerprint"]:
    base, record = known.base, known.record
  else:
    base, record = _load_base(workdir, described, config, field)
  return Start(
    config=config,
    base=base,
    record=record,
    fingerprint=described["fingerprint"],
    adapter=body,
    lora=lora,
    head=head,
    tokenizer=workdir / TOKENIZER,
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
      " the workdir of an sft, reward or rl run."
    )
  described = json.loads(path.read_text())
  missing = sorted(set(_FIELDS) - described.keys())
  if missing:
    raise ValueError(
      f"config.{field}={str(workdir)!r}: {path} has no {', '.join(missing)}. It"
      " was written by another version: run that stage again."
    )
  return described


def _load_base(workdir, described, config, field):
  record = dict(described["base"])
  if record["kind"] == "random":
    base = _random_base(config, record["seed"])
  else:
    path = Path(os.path.normpath(workdir.absolute() / record["path"]))
    base = load(path, record["checkpoint"], record["role"], field).base
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
    return body if role == "policy" else body | _new_head(config, head)

  return jax.eval_shape(make)


def _new_head(config: ModelConfig, head: str) -> dict[str, Any]:
  return roles.init_head(config, likelihood=head == "likelihood")


def _head_of(start: Start, head: str) -> dict[str, Any]:
  fresh, found = _new_head(start.config, head)[params_lib.HEAD], {}
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
    ValueError: The start has an adapter of another shape than `lora`.
  """
  with_head = _head_of(start, head) if head else {}
  if tuning == "full":
    base = start.base
    if start.adapter is not None:
      base = params_lib.merge(base, start.adapter, start.lora)
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
