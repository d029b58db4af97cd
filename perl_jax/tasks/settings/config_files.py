"""Finds and loads configs: the project's own by name, any other by its path.

  --config=rl                       configs/rl.py of this project
  --config=rl:taskmaster_coffee     the same, `get_config("taskmaster_coffee")`
  --config=DIR/mine.py              a file, relative to the current directory

The project's own configs are beside the package in a clone, and inside of it
where it is installed. A config file is run from its path; what it imports as
`configs.NAME` is the project's own, wherever the command was started, and else
what lies beside it, if its folder is called `configs`. In a clone of this
project it is the clone's, whichever package is installed.
"""

import contextlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from perl_jax import names

_PACKAGE = Path(__file__).parents[2]
_FOLDER = "configs"
_MODULE = "perl_jax_config_file"
# Files of the folder that are no configs.
_SHARED = ("__init__", "common")


def folder() -> Path:
  """The directory of the project's own configs."""
  inside = _PACKAGE / _FOLDER
  return inside if inside.is_dir() else _PACKAGE.parent / _FOLDER


def known() -> list[str]:
  """Names of the project's own configs, sorted."""
  found = (path.stem for path in folder().glob("*.py"))
  return sorted(set(found) - set(_SHARED))


def called(name: str) -> str:
  """One of the project's own, as who reads an error can give it.

  In a clone it is a file, "configs/rl.py". Where the package is installed, that
  path leads nowhere, and the name does: "perl_jax --config=rl".
  """
  if folder().parent == _PACKAGE:
    return f"perl_jax --config={name}"
  return f"{_FOLDER}/{name}.py"


def find(name: str) -> Path:
  """The file of a config.

  Args:
    name: The name of one of the project's own, or the path of a file.

  Raises:
    ValueError: There is none; says which names there are.
  """
  if name in known():
    return folder() / f"{name}.py"
  path = Path(name).expanduser()
  if os.path.isfile(path):
    return path
  meant = path.stem
  near = meant if meant in known() else names.nearest(meant, known())
  hint = f" Did you mean --config={near}?" if near else ""
  there = f"perl_jax has {', '.join(known())}"
  if re.fullmatch(r"[\w-]*", name):
    raise ValueError(
      f"There is no config {name!r}.{hint} By name {there}; a file is given by"
      " its path, such as --config=./mine.py."
    )
  what = "a directory, not a file" if os.path.isdir(path) else "No such file"
  where = "" if path.is_absolute() else f" (from {Path.cwd()})"
  raise ValueError(f"{name}{where}: {what}.{hint} By name {there}.")


def load(text: str) -> ConfigDict:
  """The locked config of what `--config` says.

  Args:
    text: A name or path, perhaps with ":" and an argument of `get_config`.

  Raises:
    ValueError: There is no such file, or it fails or gives no ConfigDict; in
      one line, with the file.
  """
  name, *argument = text.split(":", 1)
  path = find(name)
  try:
    with _run(path) as module:
      if not callable(getattr(module, "get_config", None)):
        raise ValueError("it has no function get_config().")
      config = module.get_config(*argument)
  except Exception as error:
    raise ValueError(f"{path}{_line(error, path)}: {_said(error)}") from error
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f"{path}: get_config() returned {type(config).__name__}, and not a"
      " ml_collections.ConfigDict."
    )
  return config.lock()


class _Parser(flags.ArgumentParser):
  """Makes the config of a flag's text."""

  def parse(self, argument: str) -> ConfigDict:
    return load(argument)

  def flag_type(self) -> str:
    return "config"


def define(
  name: str, text: str = "", **options: Any
) -> flags.FlagHolder[ConfigDict]:
  """Defines the flag of a config, whose fields other flags override.

  Args:
    name: Name of the flag.
    text: Its help.
    **options: As `config_flags.DEFINE_config_file` takes them.
  """
  holder = config_flags.DEFINE_config_file(name, None, text, **options)
  # Its own parser knows paths alone, and imports for config files what lies
  # in the current directory.
  options.get("flag_values", flags.FLAGS)[name].parser = _Parser()
  return holder


@contextlib.contextmanager
def _run(path: Path) -> Iterator[types.ModuleType]:
  """The module of a config file; `configs` is there while it is used."""
  loader = importlib.machinery.SourceFileLoader(_MODULE, str(path))
  spec = importlib.util.spec_from_loader(_MODULE, loader)
  module = importlib.util.module_from_spec(spec)
  places = [folder()]
  beside = path.resolve().parent
  if beside.name == _FOLDER:
    # A clone's own go together; a user's `common` is not the project's.
    is_clone = (beside.parent / _PACKAGE.name).is_dir()
    places.insert(0 if is_clone else 1, beside)
  package = types.ModuleType(_FOLDER)
  package.__path__ = [str(place) for place in places]
  elsewhere = importlib.machinery.PathFinder.find_spec(_FOLDER)
  if elsewhere is not None:  # the user's own `configs`, after these
    package.__path__ += list(elsewhere.submodule_search_locations or ())
  before = _taken()
  sys.modules |= {_FOLDER: package, _MODULE: module}
  try:
    loader.exec_module(module)
    yield module
  finally:
    _taken()
    sys.modules |= before


def _taken() -> dict[str, types.ModuleType]:
  """Takes what is imported as `configs` out of the imported modules."""
  named = re.compile(rf"({_FOLDER}|{_MODULE})(\..*)?")
  there = [name for name in sys.modules if named.fullmatch(name)]
  return {name: sys.modules.pop(name) for name in there}


def _line(error: BaseException, path: Path) -> str:
  """The line of a config file where an unexpected error was raised, or ""."""
  if isinstance(error, ValueError | SyntaxError):
    return ""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename == str(path)]
  return f", line {lines[-1]}" if lines else ""


def _said(error: Exception) -> str:
  """What a config file says of its argument, or how its code failed."""
  text = " ".join(str(error).split())
  return (
    text if type(error) is ValueError else f"{type(error).__name__}: {text}"
  )
