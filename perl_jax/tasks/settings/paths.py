"""Paths in a config mean what they mean to the user's shell."""

import os
import re

from ml_collections import ConfigDict

from perl_jax.tasks.settings import leaves as leaves_lib

# Dotted names, within a stage, of the fields that can be paths. What else they
# can be, "package:NAME" or the name of a preset, does not begin with "~".
OF_STAGES = (
  "base", "policy.init", "reward.init", "data.dir", "data.path",
  "data.validation_path", "data.cache", "data.tokenizer", "against.init",
  "endpoint.template", "judge.endpoint.template",
)  # fmt: skip
PATHS = (*OF_STAGES, "init", "model")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Fields that take addresses of the Hugging Face hub, and what begins them.
_HUB, _OF_HUB = ("data.path", "data.validation_path"), "hf://"


def require_files(config: ConfigDict, workdir: str) -> None:
  """Checks that all paths are of files: `gs://` would be made a directory.

  Raises:
    ValueError: One is an address; names the field and the ways out.
  """
  given = {"--workdir": workdir}
  for leaf in leaves_lib.leaves(config):
    if leaf.name not in PATHS or not isinstance(leaf.value, str):
      continue
    if leaf.name not in _HUB or not leaf.value.startswith(_OF_HUB):
      given[f"--config.{leaf.path}"] = leaf.value
  for name, value in given.items():
    if _ADDRESS.match(value):
      raise ValueError(
        f"{name}={value} is an address, and the path of a directory or a file"
        " is needed. Mount the bucket (gcsfuse, mount-s3) and give the path"
        " where it is mounted; or copy what lies there to a disk."
      )


def absolute(path: str) -> str:
  """One spelling of a path, as a shell reads it from the current directory."""
  return os.path.abspath(os.path.expanduser(path))


def expand(config: ConfigDict) -> ConfigDict:
  """A copy of a config with "~" expanded: a shell leaves `--field=~/x` alone.

  Relative paths are left as they are, from the current directory.
  """
  config = config.copy_and_resolve_references()
  found = list(leaves_lib.leaves(config))
  with config.unlocked():
    for leaf in found:
      if leaf.name in PATHS and isinstance(leaf.value, str):
        key = leaf.name.rpartition(".")[2]
        leaf.section[key] = os.path.expanduser(leaf.value)
  return config
