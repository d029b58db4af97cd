"""model.json: what a stage leaves for the next one to find.

Beside its checkpoints a workdir holds `model.json` (the model, the shape of the
adapters, how they were tuned, and their base by reference and fingerprint) and
`tokenizer/`. A later stage needs nothing but the path of the workdir.
"""

import math
import os
import shutil
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perl_jax import buckets, disk, files, hosts, json_text
from perl_jax.data.text import files as tokenizer_files
from perl_jax.data.text import gguf_metadata, gguf_tokenizer, hugging_face
from perl_jax.interop import hf_checkpoint, hf_config, peft, values
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import saved as saved_lib
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.initial.model import Start

MODEL_FILE = "model.json"
TOKENIZER = sealed.TOKENIZER

# Beside a model's weights lie the files of its tokenizer.
_TOKENIZER_FILES = (
  "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
  "merges.txt", "*.model", "chat_template*", "tekken.json", "*.tiktoken",
  f"{hugging_face.TEMPLATES}/*.jinja",
)  # fmt: skip
# What else of a model's files says how it is used.
_MODEL_FILES = ("config.json", "generation_config.json")
# Version of the files of a workdir. 2: checkpoints keep a tree for each role.
VERSION = 2
# What the absence of fields meant that were added since.
_MEANT = {"score_at": "turn"}
_FIELDS = (
  "version", "model", "lora", "tuning", "trained", "head", "ensemble", "init",
  "base", "fingerprint",
)  # fmt: skip


def write_model(
  workdir: Path,
  start: Start,
  *,
  lora: LoraSpec,
  tuning: str,
  trained: Sequence[str],
  init: Mapping[str, Any],
  head: str = "scalar",
  members: int = 1,
  score_at: str = "",
) -> None:
  """Writes model.json and the tokenizer of a stage, on process 0 alone.

  Args:
    workdir: Workdir of the stage.
    start: The base, adapter, head and tokenizer that the stage starts from.
    lora: Shape of the adapters that it trains.
    tuning: "lora" or "full".
    trained: Roles in its checkpoints: ("policy",), ("reward",) or
      ("policy", "value").
    init: {"init": workdir of the stage that it started from or "",
      "checkpoint"}; an evaluation finds the anchor there.
    head: Kind of the reward model's head, one of `settings.reward.HEADS`.
    members: Number of reward models in a checkpoint.
    score_at: Where their scores are read, one of `settings.reward.SCORE_AT`;
      "" for other roles.
  """
  if not hosts.is_primary():
    return  # the others wait at the end of `workdir.preparing`
  init, source = dict(init), dict(start.source)
  # Relative paths, so that a tree of runs can be moved as a whole.
  if init["init"]:
    init["init"] = buckets.relative(init["init"], workdir)
  if source["kind"] == "workdir":
    source["path"] = buckets.relative(source["path"], workdir)
  if start.tokenizer.resolve() != (workdir / TOKENIZER).resolve():
    write_tokenizer(start, workdir / TOKENIZER)
    _require_readable(start.tokenizer, workdir / TOKENIZER)
  files.write_json(
    workdir / MODEL_FILE,
    {
      "version": VERSION,
      "model": start.config.to_dict(),
      "lora": lora.to_dict(),
      "tuning": tuning,
      "trained": list(trained),
      "head": head,
      "ensemble": members,
      "score_at": score_at,
      "init": init,
      "base": buckets.named(source),
      "fingerprint": start.fingerprint,
    },
  )


def write_tokenizer(start: Start, target: Path) -> None:
  """Writes the tokenizer of a start, and what the files of its model say.

  Args:
    start: The model; see `Start.tokenizer`, `template` and `model_files`.
    target: Directory to write to.
  """
  copy_tokenizer(start.tokenizer, target)
  with disk.writing("the tokenizer", target):
    if start.template is not None:
      _copy(start.template, target / hugging_face.TEMPLATE)
      # It is the only one: `tokenizer_files.read` knows no other then.
      shutil.rmtree(target / hugging_face.TEMPLATES, ignore_errors=True)
    source = start.model_files
    if source is None:
      return
    for name in _MODEL_FILES:
      (target / name).unlink(missing_ok=True)
      if (source / name).is_file():
        _copy(source / name, target / name)
    if source.is_file():
      ids = {"eos_token_id": list(tokenizer_files.stop_ids(source))}
      files.write_json(target / "generation_config.json", ids)


def copy_tokenizer(source: Path, target: Path) -> None:
  """Copies the files of a tokenizer, and not the weights beside them.

  Args:
    source: The directory of a tokenizer, or a GGUF file that has one in it.
    target: Directory to write to.
  """
  with disk.writing("the tokenizer", target):
    if source.suffix == gguf_metadata.SUFFIX:
      gguf_tokenizer.write_tokenizer(source, target)
      return
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _TOKENIZER_FILES + _MODEL_FILES:
      for path in source.glob(pattern):
        if path.is_file():
          _copy(path, target / path.relative_to(source))
    template = hugging_face.processor_template(source)
    if template is not None:  # where everybody reads it
      files.write_text(target / hugging_face.TEMPLATE, template)


def _require_readable(source: Path, target: Path) -> None:
  """Checks that a copy of a tokenizer is one, before anything is trained.

  Raises:
    ValueError: It is none: the tokenizer has a file that is not copied.
  """
  try:
    tokenizer_files.read(target)
  except ValueError as error:
    raise ValueError(
      f"The tokenizer in {source} cannot be copied: {error} Save it with"
      " `save_pretrained` of transformers, and give that directory."
    ) from error


def _copy(source: Path, target: Path) -> None:
  """Copies a file, but not its mode: nobody might be allowed to write it."""
  target.parent.mkdir(exist_ok=True)
  files.write_bytes(target, source.read_bytes())


def beside(workdir: str | Path, relative: str) -> Path:
  """Where a path in model.json leads, which is relative to its workdir.

  ".." is taken off the name by which the workdir was given, as it was written;
  where nothing is there, off the directory that a symbolic link stands for.
  What it leads to in a bucket has been copied, if there is anything.
  """
  if buckets.is_address(relative):
    return buckets.present(buckets.path_of(relative))
  named = Path(os.path.normpath(Path(workdir).absolute() / relative))
  buckets.present(named)
  linked = Path(workdir).resolve() / relative
  return linked.resolve() if linked.exists() and not named.exists() else named


def read_model(workdir: str | Path, field: str) -> dict[str, Any]:
  """The contents of a stage's model.json.

  Raises:
    FileNotFoundError: There is none; names the field and the way out.
    ValueError: It was written by another version, or lacks fields.
  """
  path = Path(workdir) / MODEL_FILE
  if not path.is_file():
    hint = _below(Path(workdir)) or hf_config.instead(Path(workdir))
    several = saved_lib.members(workdir)
    if several:
      hint = f" It is a run of {len(several)} members: name one, {several[0]}."
    raise FileNotFoundError(
      f"config.{field}={str(workdir)!r}: {path} does not exist. It must be"
      " the workdir of an sft, reward, rl or dpo run, a Hugging Face"
      f" checkpoint, a GGUF file or a PEFT adapter.{hint}"
    )
  saved = json_text.read_object(path, "Run that stage again in a new workdir.")
  require_version(path, saved, f"config.{field}={str(workdir)!r}")
  missing = sorted(set(_FIELDS) - saved.keys())
  if missing:
    raise ValueError(
      f"config.{field}={str(workdir)!r}: {path} has no {', '.join(missing)}."
      " Restore the file, or run that stage again."
    )
  wrong = _wrong_field(saved)
  if wrong is not None:
    raise ValueError(
      f"config.{field}={str(workdir)!r}: {path} is damaged: {wrong}. Restore"
      " the file, or run that stage again."
    )
  sealed.require(workdir, MODEL_FILE, TOKENIZER)
  return _MEANT | saved


def _below(directory: Path) -> str:
  """Names what a trainer, or the hub's cache, has in folders, or ""."""
  folders = [*directory.glob("*/"), *directory.glob("snapshots/*/")]
  named = {
    str(path.relative_to(directory)): path
    for path in sorted(folders)
    if path.is_dir()
  }
  adapters = [name for name, path in named.items() if peft.is_adapter(path)]
  if adapters:
    return f" Adapters lie below it: {', '.join(adapters)}."
  found = [n for n, path in named.items() if hf_checkpoint.is_checkpoint(path)]
  return f" Checkpoints lie below it: {', '.join(found)}." if found else ""


def _wrong_field(saved: Mapping[str, Any]) -> str | None:
  """The first field of a model.json that no stage writes, with its value."""
  fine = {
    "tuning": saved["tuning"] in ("lora", "full"),
    "trained": _is_list_of_names(saved["trained"]),
    "head": isinstance(saved["head"], str),
    "score_at": isinstance(saved.get("score_at", ""), str),
    "ensemble": values.is_count(saved["ensemble"]),
    "fingerprint": isinstance(saved["fingerprint"], str),
    "init": _is_text(saved["init"], "init", "checkpoint"),
    "base": _is_text(saved["base"], "kind", "dtype") and (
      _is_text(saved["base"], "path")
      or (saved["base"]["kind"] == "random" and "seed" in saved["base"])
    ),
  }  # fmt: skip
  for name, right in fine.items():
    if not right:
      return f"{name}={saved[name]!r:.80}"
  for name, made in (("model", ModelConfig), ("lora", LoraSpec)):
    wrong = _wrong_part(made, saved[name])
    if wrong is not None:
      return f"{name}: {wrong}"
  return None


def _wrong_part(made: type, fields: Any) -> str | None:
  """Why a dataclass cannot be made of the fields in a file; None if it can."""
  if not isinstance(fields, dict):
    return f"it is {fields!r:.80}, not an object"
  hints = typing.get_type_hints(made)
  for name, value in fields.items():
    kinds = typing.get_args(hints.get(name)) or (hints.get(name),)
    kinds += (int,) if float in kinds else ()
    if name in hints and type(value) not in kinds:
      return f"{name}={value!r:.80}"
    if isinstance(value, float) and not math.isfinite(value):
      return f"{name}={value!r}"
  try:
    made.from_dict(fields)
  except (TypeError, ValueError) as error:  # a field is missing, or new
    return str(error)
  return None


def _is_text(fields: Any, *names: str) -> bool:
  """Whether it is an object in which these fields are text."""
  return isinstance(fields, dict) and all(
    isinstance(fields.get(name), str) for name in names
  )


def _is_list_of_names(value: Any) -> bool:
  texts = isinstance(value, list) and all(isinstance(v, str) for v in value)
  return texts and bool(value)


def require_version(path: Path, saved: Mapping[str, Any], where: str) -> None:
  """Checks that a workdir was written by a version whose files this one reads.

  Args:
    path: The model.json that was read.
    saved: Its contents.
    where: Flag or field that named the workdir, for the error message.

  Raises:
    ValueError: It was written by an older or a newer version.
  """
  version = saved.get("version", 1)
  if not values.is_index(version):
    raise ValueError(f"{where}: {path} is damaged: version={version!r:.80}.")
  if version == VERSION:
    return
  age = "an older" if version < VERSION else "a newer"
  raise ValueError(
    f"{where}: {path} was written by {age} version of perl_jax (workdir version"
    f" {version}, this one reads {VERSION}), and its checkpoints have another"
    " layout. Run that stage again in a new workdir, or use the version that"
    " wrote it."
  )
