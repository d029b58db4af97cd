"""Finds the files of a path, and which of them hold validation rows."""

import contextlib
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from absl import logging

from perl_jax import names
from perl_jax.data.sources.jsonl import foreign, formats, hub

# Words in the names of files, folders and splits.
_TRAIN = {"train", "training"}
_VALIDATION = {"validation", "valid", "val", "dev"}
_TEST = {"test", "testing", "eval", "evaluation"}
# What stands beside rows in a directory that `datasets` wrote, or a repository.
_NO_ROWS = re.compile(
  r"(dataset_infos?|state|dataset_dict|config|package)\.json|cache-.*\.arrow"
)


class Parts(NamedTuple):
  """Sorted files, or names of splits, by what their names say.

  Attributes:
    train: To train on.
    validation: To validate on; empty if no name says so.
    unused: Test files, where there are validation files as well.
  """

  train: tuple
  validation: tuple
  unused: tuple


def find_files(path: str) -> Parts:
  """Returns the file itself, or the files of a directory, by their splits.

  Those of an address that begins with hf:// are the splits of a data set.

  The files are those in the directory or in folders below it, in the order of
  their paths; what begins with a dot is left out. Files whose path within the
  directory has the word `validation` (`valid`, `val`, `dev`) are validation
  files, and if there is none, those with the word `test` (`eval`) are.

  Raises:
    FileNotFoundError: There is no such path, or no such file in the directory.
  """
  if path.startswith(hub.PREFIX):
    return parts(hub.find(path))
  root = pathlib.Path(path).expanduser()
  if root.is_dir():
    found = _below(root)
    files = [
      file
      for file in found
      if _may_be_read(file) and not _NO_ROWS.fullmatch(file.name)
    ]
    if not files:
      raise FileNotFoundError(
        f"{path} has no {foreign.FORMATS} file in it.{_others(found)}"
      )
    _check_others(root, files, [file for file in found if file not in files])
    return parts({file: str(file.relative_to(root)) for file in files})
  if not root.is_file():
    near = names.nearest(
      root.name,
      [f.name for f in root.parent.glob("*") if f.is_dir() or _may_be_read(f)],
    )
    hint = f" Did you mean {root.parent / near}?" if near else ""
    raise FileNotFoundError(
      f"{path} does not exist: the path of a {foreign.FORMATS} file, or of"
      f" a directory of them, is needed.{hint}"
    )
  return Parts((root,), (), ())


def parts(named: Mapping[Any, str]) -> Parts:
  """Divides files or splits by the words in their names; see `find_files`.

  Args:
    named: Name of each, in the order to keep.
  """
  words = {key: _split_word(name) for key, name in named.items()}
  train, validation, test = (
    tuple(key for key, word in words.items() if word in wanted)
    for wanted in (("train", ""), ("validation",), ("test",))
  )
  if not train:  # a directory of test files alone is what was asked for
    return Parts(validation + test, (), ())
  return Parts(train, validation or test, test if validation else ())


def _split_word(name: str) -> str:
  """Returns the split that a name says, "" if none; its end counts most."""
  for part in reversed(pathlib.PurePath(name.lower()).parts):
    found = set(re.split(r"[^a-z]+", part))
    for split, words in (
      ("train", _TRAIN),
      ("validation", _VALIDATION),
      ("test", _TEST),
    ):
      if found & words:
        return split
  return ""


def _below(root: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    file
    for file in root.rglob("*")
    if file.is_file()
    and not any(part[0] == "." for part in file.relative_to(root).parts)
  )


def _may_be_read(file: pathlib.Path) -> bool:
  return file.name.lower().endswith(formats.SUFFIXES)


def _check_others(
  root: pathlib.Path,
  files: Iterable[pathlib.Path],
  others: Iterable[pathlib.Path],
) -> None:
  """Says which files beside those that are read have rows in another format.

  Raises:
    FileNotFoundError: Those to train on are among them, by their names.
  """
  unread = [file for file in others if _format_of(file)]
  if not unread:
    return

  def is_train(file):
    return _split_word(str(file.relative_to(root))) == "train"

  if any(map(is_train, unread)) and not any(map(is_train, files)):
    first = next(filter(is_train, unread))
    raise FileNotFoundError(
      f"{root} has no file to train on that is read."
      f" {foreign.refusal(first, _format_of(first))}"
    )
  logging.warning(
    "%s: left out, as rows are read from %s files: %s.",
    root,
    foreign.FORMATS,
    ", ".join(str(file.relative_to(root)) for file in unread),
  )


def _format_of(file: pathlib.Path) -> str:
  """Returns the format of a file that is not read, "" if it is unknown."""
  start = b""
  with contextlib.suppress(OSError), file.open("rb") as opened:
    start = opened.read(32)
  return foreign.format_of(file, start)


def _others(found: Iterable[pathlib.Path]) -> str:
  """Returns what to do with the first file of another format, if any."""
  for file in found:
    name = _format_of(file)
    if name:
      return f" {foreign.refusal(file, name)}"
  return ""
