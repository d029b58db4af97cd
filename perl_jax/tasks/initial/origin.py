"""Where a backbone comes from, told from files alone: no weight is read."""

from pathlib import Path

from perl_jax import json_text
from perl_jax.interop import peft, pretrained
from perl_jax.tasks.initial import manifest
from perl_jax.tasks.settings import defaults, shared

# No chain of stages is longer; one that is goes round in a circle.
_LONGEST = 100


def backbone(config: shared.Config) -> defaults.Backbone:
  """The backbone that a stage will have.

  What cannot be read is taken as not pretrained: the command itself says what
  is wrong with where it starts from.

  Args:
    config: Config of a stage, with `policy.init` or `reward.init`, and `base`.
  """
  for role in ("policy", "reward"):
    init = config[role].get("init") if role in config else None
    if init:
      return _of_init(Path(init))
  return defaults.Backbone(pretrained=bool(config.base))


def _of_init(path: Path) -> defaults.Backbone:
  saved = _model_file(path)
  if saved is None:
    theirs = peft.is_adapter(path) or bool(pretrained.kind_of(path))
    return defaults.Backbone(pretrained=theirs)
  kept = None if saved.get("tuning") == "full" else saved["base"].get("dtype")
  for _ in range(_LONGEST):
    base = saved["base"]
    if base.get("kind") in pretrained.KINDS:
      return defaults.Backbone(pretrained=True, base_dtype=kept)
    if base.get("kind") != "workdir" or not isinstance(base.get("path"), str):
      break
    path = manifest.beside(path, base["path"])
    saved = _model_file(path)
    if saved is None:
      break
  return defaults.Backbone(pretrained=False, base_dtype=kept)


def _model_file(path: Path) -> dict | None:
  saved = json_text.object_or_none(path / manifest.MODEL_FILE) or {}
  return saved if isinstance(saved.get("base"), dict) else None
