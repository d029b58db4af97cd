"""Paths in a config mean what they mean to the user's shell."""

import os

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
