"""Paths in a config mean what they mean to the user's shell."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from perl_jax import buckets
from perl_jax.tasks.settings import leaves as leaves_lib

# Dotted names, within a stage, of the fields that can be paths. What else they
# can be, "package:NAME" or the name of a preset, does not begin with "~".
OF_STAGES = (
  "base", "policy.init", "reward.init", "data.dir", "data.path",
  "data.validation_path", "data.cache", "data.tokenizer", "against.init",
  "endpoint.template", "judge.endpoint.template",
)  # fmt: skip
PATHS = (*OF_STAGES, "init", "model")
# Directory below the workdir of a run with the workdirs of its members.
MEMBERS = "members"
# Fields whose folders are read, or addresses of the Hugging Face hub, and what
# begins these.
_ROWS, _OF_HUB = ("data.path", "data.validation_path"), "hf://"
# Fields that name workdirs among other words.
_AMONG = ("runs", "judges", "judge.by")
_IN_BUCKET = re.compile(r"(?:gs|s3)://[^\s,=]+")


def name_of(workdir: Path) -> str:
  """What people call a run by: its directory; "RUN/1" of a member."""
  path = workdir.absolute()
  if path.name.isdigit() and path.parent.name == MEMBERS:
    return f"{path.parents[1].name}/{path.name}"
  return path.name


def check(config: ConfigDict, workdir: str) -> None:
  """Checks the addresses among the paths, and that rows are not the workdir.

  Raises:
    ValueError: An address is malformed, or of something else than a bucket, of
      which the file system would make a directory, or the run would read what
      it writes; names the field and the ways out.
  """
  given = {"--workdir": workdir}
  for leaf in leaves_lib.leaves(config):
    if leaf.name not in PATHS or not isinstance(leaf.value, str):
      continue
    if leaf.name in _ROWS and leaf.value and _is_same(leaf.value, workdir):
      raise ValueError(
        f"config.{leaf.path} is --workdir: {workdir}. The run would read its"
        " own files as rows: give a directory of its own as --workdir."
      )
    if leaf.name not in _ROWS or not leaf.value.startswith(_OF_HUB):
      given[f"--config.{leaf.path}"] = leaf.value
  for name, value in given.items():
    if not buckets.is_url(value):
      continue
    if buckets.is_address(value) and not name.endswith("data.cache"):
      buckets.check(value)
      continue
    raise ValueError(
      f"{name}={value} is an address, and"
      + (
        " a cache is a directory of this machine: give its path."
        if name.endswith("data.cache")
        else " what is taken is a path, or gs:// or s3:// with a bucket and a"
        " path in it."
      )
    )


def _is_same(path: str, workdir: str) -> bool:
  return os.path.realpath(absolute(path)) == os.path.realpath(absolute(workdir))


def localized(config: ConfigDict) -> ConfigDict:
  """A copy of a config with paths of this machine instead of addresses.

  What lies at the addresses is copied there.

  Raises:
    FileNotFoundError: Nothing lies at an address.
    ValueError: A bucket cannot be read.
  """

  def local(value: object, name: str) -> object:
    if isinstance(value, tuple | list):
      return type(value)(local(item, name) for item in value)
    if name in PATHS and buckets.is_address(value):
      return str(buckets.fetch(value))
    if name in _AMONG and isinstance(value, str):
      return _IN_BUCKET.sub(lambda m: str(buckets.fetch(m.group())), value)
    return value

  return _changed(config, local)


def absolute(path: str) -> str:
  """One spelling of a path, as a shell reads it from the current directory.

  An address is spelled as the path that stands for it.
  """
  if buckets.is_address(path):
    return str(buckets.path_of(path))
  return os.path.abspath(os.path.expanduser(path))


def expand(config: ConfigDict) -> ConfigDict:
  """A copy of a config with "~" expanded: a shell leaves `--field=~/x` alone.

  Relative paths are left as they are, from the current directory.
  """

  def expanded(value: object, name: str) -> object:
    is_path = name in PATHS and isinstance(value, str)
    return os.path.expanduser(value) if is_path else value

  return _changed(config, expanded)


def _changed(
  config: ConfigDict, change: Callable[[object, str], object]
) -> ConfigDict:
  """A copy of a config with `change(value, name)` for each of its fields."""
  config = config.copy_and_resolve_references()
  found = list(leaves_lib.leaves(config))
  with config.unlocked():
    for leaf in found:
      value = change(leaf.value, leaf.name)
      if value is not leaf.value and value != leaf.value:
        leaf.section[leaf.name.rpartition(".")[2]] = value
  return config
