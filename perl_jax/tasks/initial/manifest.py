"""model.json: what a stage leaves for the next one to find."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perl_jax import files, hosts
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial.model import Start

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
  files.write_json(
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
