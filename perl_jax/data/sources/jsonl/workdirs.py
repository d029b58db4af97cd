"""Workdirs of runs among the folders of a user's data.

Their files are what the tool has written of its work: the lines of metrics and
samples are no rows of the user's, and there are more of them at the next start.
"""

import pathlib

from perl_jax import json_text

_LOCK, _CONFIG = "lock.json", "config.json"
# A lock says which process holds it, and a config which task it is for; others
# write files of these names, with other things in them.
_OF_A_LOCK = {"host", "pid", "token"}
_BESIDE_A_CONFIG = ("command.txt", "sha256.txt", "metrics.jsonl")


def is_workdir(folder: pathlib.Path) -> bool:
  """Whether a run writes there, or has."""
  lock = json_text.object_or_none(folder / _LOCK)
  if lock is not None and lock.keys() >= _OF_A_LOCK:
    return True
  if (folder / "model.json").is_file() and (folder / "checkpoints").is_dir():
    return True
  config = json_text.object_or_none(folder / _CONFIG) or {}
  return isinstance(config.get("task"), str) and any(
    (folder / name).is_file() for name in _BESIDE_A_CONFIG
  )
