"""Says what is wrong with a command line that `ml_collections` does not take.

A field that a config does not have, a slip in any part of its path, a field of
another config, the whole of a section: what that library says of them names a
part of the path, or is a traceback.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from perl_jax import names
from perl_jax.tasks.settings import config_files, ranges

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=|$)", re.DOTALL)
# What `ml_collections` says of several values that it cannot take apart; what
# it advises is no flag of ours.
_TUPLE = re.compile(
  r"flag (--[^=]+)=(.*): Error while parsing string: \2 as tuple\..*", re.DOTALL
)
_FILE = re.compile(r"--?config(?:=(.*))?$", re.DOTALL)
# How many places are listed where a field could have been meant.
_LISTED = 6


class Asked(NamedTuple):
  """What a command line asks for.

  Attributes:
    file: What `--config` says: a name or a file, perhaps with ":" and an
      argument; None if it is not there.
    paths: Dotted names of the fields that it overrides, in order.
  """

  file: str | None
  paths: list[str]


def asked(argv: Sequence[str]) -> Asked:
  """The config and the overrides of a command line; flag files are read."""
  arguments = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
  file, paths = None, []
  for number, argument in enumerate(arguments[1:], start=2):
    if argument == "--":
      break
    if found := _FILE.match(argument):
      file = (
        found[1] if found[1] is not None else "".join(arguments[number:][:1])
      )
    elif found := _OVERRIDE.match(argument):
      paths.append(found[1])
  return Asked(file, paths)


def refusal(argv: Sequence[str]) -> str | None:
  """What is wrong with the config of a command line, None if nothing is.

  It is read apart from the flags of this process, and nothing is started.

  Args:
    argv: The command line, the program first.
  """
  try:
    config = config_of(argv)
  except Exception as error:
    return " ".join(explain(argv, error).split())
  wrong = fault(config, argv)
  if wrong is not None:
    return " ".join(wrong.split())
  try:
    ranges.check(config)
  except ValueError as error:
    return str(error)
  return None


def config_of(argv: Sequence[str]) -> ConfigDict:
  """The config of a command line, apart from the flags of this process.

  Args:
    argv: The command line, the program first.
  """
  known = flags.FlagValues()
  config_files.define("config", flag_values=known, sys_argv=argv)
  known(argv, known_only=True)
  config = known["config"].value
  _ = config.task
  return config


def explain(argv: Sequence[str], error: Exception) -> str:
  """Why a command line could not be parsed, in one line.

  Args:
    argv: The command line, the program first.
    error: What parsing raised.
  """
  with contextlib.suppress(flags.Error):
    config = _load(asked(argv).file or "")
    if config is not None:
      wrong = fault(config, argv)
      if wrong is not None:
        return wrong
      if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname.removeprefix("no")
        if name in dict(fields(config)):
          return f"unknown flag --{name}. Did you mean --config.{name}?"
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  text = (lines or [""])[-1]
  if several := _TUPLE.fullmatch(text):
    name, value = several.groups()
    each = ",".join(f'"{v.strip()}"' for v in value.strip("()[] ").split(","))
    one = ",".join([f'"{value}"', ""])
    return (
      f"{name}={value}: texts of a list are quoted: {name}='({each})' for"
      f" several, {name}='({one})' for one."
    )
  if isinstance(error, flags.Error | OSError):
    return text
  return f"{type(error).__name__}: {text}"


def fault(config: ConfigDict, argv: Sequence[str]) -> str | None:
  """What is wrong with the fields that a command line overrides, or None.

  Returns:
    A sentence or two on the first that is not a field of the config.
  """
  file, paths = asked(argv)
  name = (file or "").partition(":")[0]  # without an argument
  faults = (path_fault(config, path, name) for path in paths)
  return next((wrong for wrong in faults if wrong is not None), None)


def path_fault(config: ConfigDict, path: str, file: str) -> str | None:
  """What is wrong with the dotted name of a field, None if nothing is.

  Args:
    config: The config.
    path: Dotted name, as it stands behind "--config.".
    file: What to call the config.
  """
  known = dict(fields(config))
  if path not in known:
    return f"no such config field: {_missing(path, known, file)}"
  if isinstance(known[path], ConfigDict):
    inside = [f"--config.{n}" for n in known if n.startswith(f"{path}.")]
    return (
      f"--config.{path} is a section of {file}, not a field. Give its fields:"
      f" {_listed(inside) or 'it has none'}."
    )
  if path.rpartition(".")[2] == "task":
    return (
      f"--config.{path} is what {file} is for, and cannot be changed. Give the"
      " config of the other task as --config=FILE."
    )
  return None


def _missing(path: str, known: Mapping[str, Any], file: str) -> str:
  """Where a field is that is not in a config, or what was meant by it."""
  parts = path.split(".")
  for end in range(1, len(parts)):
    above = ".".join(parts[:end])
    if above in known and not isinstance(known[above], ConfigDict):
      return f"{path}. --config.{above} is a field, and nothing is below it."
  text = f"{path} is not in {file}."
  below = [name for name in known if name.endswith(f".{path}")]
  stages = [name for name in below if "task" in known[name.partition(".")[0]]]
  if stages:
    flags_ = [f"--config.{name}" for name in stages]
    return f"{text} Its stages have it: {_listed(flags_)}."
  near = below[0] if below else _nearest(path, known)
  if near is not None:
    text += f" Did you mean {near!r}?"
  else:
    same = [name for name in known if name.split(".")[-1] == parts[-1]]
    text += f" It has {_listed(same)}." if same else ""
  others = [name for name, other in _others() if path in dict(fields(other))]
  if others:
    text += f" It is a field of {_listed(others)}."
  return text


def fields(config: ConfigDict, above: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted names of all fields and sections of a config, with their values."""
  for name, value in config.items():
    yield f"{above}{name}", value
    if isinstance(value, ConfigDict):
      yield from fields(value, f"{above}{name}.")


def _nearest(path: str, known: Mapping[str, Any]) -> str | None:
  """The known field that was most likely meant, None if none is like it."""
  plain = path.replace("-", "_").lower()
  if plain in known:
    return plain
  # Part by part, so that a slip in one leaves the others as they are.
  found = ""
  for part in plain.split("."):
    here = {
      name: name.removeprefix(found)
      for name in known
      if name.startswith(found) and "." not in name.removeprefix(found)
    }
    near = names.nearest(part, here.values())
    if near is None:
      break
    found += f"{near}."
  else:
    return found[:-1]
  leaves = [k for k, v in known.items() if not isinstance(v, ConfigDict)]
  return names.nearest(plain, leaves)


def _load(file: str) -> ConfigDict | None:
  """The config of a file, None if it cannot be loaded."""
  with contextlib.suppress(ValueError):
    return config_files.load(file)
  return None


def _others() -> Iterator[tuple[str, ConfigDict]]:
  """The project's own configs, by the names of their files."""
  for name in config_files.known():
    config = _load(name)
    if config is not None:
      yield config_files.called(name), config


def _listed(found: Sequence[str]) -> str:
  more = len(found) - _LISTED
  rest = f" and {more} more" if more > 0 else ""
  return ", ".join(found[:_LISTED]) + rest
