"""Finds the files of a path, and which of them hold validation rows."""

import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from perl_jax import names
from perl_jax.data.sources.jsonl import folder, foreign, hub

# Words in the names of files, folders and splits.
_TRAIN = {"train", "training"}
_VALIDATION = {"validation", "validate", "valid", "val", "dev"}
_VALIDATION |= {"holdout", "heldout", "hold out", "held out"}
_TEST = {"test", "tests", "testing", "eval", "evals", "evaluation"}
# What may follow a word without a mark between them, as in testset.
_ENDS = ("", "set", "sets", "data", "split", "rows")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# What looks like one of those words, and is part of another.
_HELD_OUT = re.compile(r"test|valid|hold.?out|held.?out")
_OTHER_WORDS = re.compile(r"(la|grea|fas|shor|smar|con|pro)tests?|invalid.*")


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
  directory has the word `validation` (`valid`, `val`, `dev`, `holdout`) are
  validation files, and if there is none, those with the word `test` (`eval`)
  are.

  Raises:
    FileNotFoundError: There is no such path, or no such file in the directory,
      or a link in it leads nowhere.
    ValueError: A folder or file may not be read, or the path is no file.
  """
  if path.startswith(hub.PREFIX):
    return parts(hub.find(path))
  root = pathlib.Path(path).expanduser()
  if root.is_dir():
    found = folder.below(root)
    files, others = list(filter(folder.has_rows, found)), folder.unread(found)
    if not files:
      why = f" {folder.refusal(others[0])}" if others else ""
      raise FileNotFoundError(
        f"{path} has no {foreign.FORMATS} file in it.{why}"
      )
    _check_train(root, files, others)
    folder.warn_of_missing(root, files, others, found)
    return parts({file: str(file.relative_to(root)) for file in files})
  if root.exists() and not root.is_file():
    raise ValueError(
      f"{path} is no file but a pipe or a device, and rows are read more than"
      " once. Write them into a file first: cat ... > rows.jsonl"
    )
  if root.is_file():
    return Parts((root,), (), ())
  there = [f for f in root.parent.glob("*") if f.is_dir() or folder.has_rows(f)]
  near = names.nearest(root.name, [file.name for file in there])
  hint = f" Did you mean {root.parent / near}?" if near else ""
  raise FileNotFoundError(
    f"{path} does not exist: the path of a {foreign.FORMATS} file, or of"
    f" a directory of them, is needed.{hint}"
  )


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


def doubtful(path: str, files: Sequence[Any]) -> list[str]:
  """Returns what to say of training files that are called like held-out ones.

  Args:
    path: The directory, or address, that they were found at.
    files: The files, or splits, to train on.
  """
  named = [str(file).removeprefix(path).lstrip("/") for file in files]
  found = [
    name
    for name in named
    if _split_word(name) in ("train", "") and _is_doubtful(name)
  ]
  if not found:
    return []
  return [
    f"{path}: trained on, whatever their names say of tests:"
    f" {', '.join(found)}. If they hold rows to validate on, call them"
    " validation, or keep them elsewhere."
  ]


def _split_word(name: str) -> str:
  """Returns the split that a name says, "" if none; its end counts most."""
  for part in reversed(pathlib.PurePath(name).parts):
    found = _words(part)
    for split, words in (
      ("train", _TRAIN),
      ("validation", _VALIDATION),
      ("test", _TEST),
    ):
      if any(word + end in found for word in words for end in _ENDS):
        return split
  return ""


def _is_doubtful(name: str) -> bool:
  """Whether something in a name of training rows says that they are not."""
  last = pathlib.PurePath(name).name
  if _split_word(last):  # Which counts more than the folders.
    name = last
  return any(
    word in _VALIDATION | _TEST
    or (_HELD_OUT.search(word) and not _OTHER_WORDS.fullmatch(word))
    for word in _words(name)
    if " " not in word
  )


def _words(name: str) -> set[str]:
  """Returns the words of a name in lower case, and two of them together."""
  words = [word.lower() for word in _WORD.findall(name)]
  return {*words, *map(" ".join, itertools.pairwise(words))}


def _check_train(
  root: pathlib.Path,
  files: Iterable[pathlib.Path],
  unread: Iterable[pathlib.Path],
) -> None:
  """Checks that the files to train on are not all of another format.

  Raises:
    FileNotFoundError: They are, by their names.
  """

  def is_train(file):
    return _split_word(str(file.relative_to(root))) == "train"

  others = list(filter(is_train, unread))
  if others and not any(map(is_train, files)):
    raise FileNotFoundError(
      f"{root} has no file to train on that is read."
      f" {folder.refusal(others[0])}"
    )
