"""The files of a directory, and what it says of rows that are not there."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

from perl_jax import json_text
from perl_jax.data.sources.jsonl import foreign, formats, workdirs

# What stands beside rows in a directory that `datasets` wrote, or a repository.
_NO_ROWS = re.compile(
  r"(dataset_infos?|state|dataset_dict|config|package)\.json|cache-.*\.arrow"
)
# Files that hold no rows whatever is in them, in lower case.
_NO_DATA = re.compile(
  r"(readme|licen[cs]e|copying|notice|authors|citation|changelog|changes"
  r"|contributing|requirements|makefile|dockerfile|manifest|checksums?"
  r"|(md5|sha\d+)sums?)([._-].*)?|_(success|committed|started).*"
  r"|.*\.(md|rst|bib|cff|ya?ml|toml|ini|cfg|py|pyc|ipynb|r|sh|bat|js|css|log"
  r"|lock|crc|md5|sha1|sha256|pdf|docx?|png|jpe?g|gif|svg|webp|wav|mp3|mp4"
  r"|safetensors|jinja)"
)
# Ends of names that downloads and writers give to what they have not finished.
_UNFINISHED = re.compile(
  r".*\.(incomplete|part|partial|crdownload|download|aria2|te?mp)"
)
# Folders of Spark: what was not committed, and of what a table consists now.
_UNCOMMITTED, _DELTA = "_temporary", "_delta_log"
# What `save_to_disk` of `datasets` writes beside the folders of several splits.
_SPLITS = "dataset_dict.json"
_SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)(?!\d).*")
_SHOWN = 10


def below(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files in a directory and in folders below it, sorted.

  Links are followed, but those to folders that are read anyway. What begins
  with a dot is left out, and so are workdirs of runs below the directory, which
  the log says.

  Raises:
    FileNotFoundError: A link leads nowhere, so that its rows are missing.
    ValueError: A folder or a file may not be read, or a folder is a table of
      Delta Lake.
  """
  top, found = root.resolve(), []
  seen = {top}
  for name, folders, files in os.walk(
    root, followlinks=True, onerror=_not_readable
  ):
    folder = pathlib.Path(name)
    kept = []
    for child in map(folder.joinpath, folders):
      real = child.resolve()
      if child.name[0] == "." or real in seen:
        continue
      if child.name == _DELTA:
        raise ValueError(
          f"{folder} is a table of Delta Lake, in whose Parquet files are rows"
          " that were deleted or replaced since. Write what it holds now into a"
          " directory of its own, with Spark or the package deltalake."
        )
      if child.name == _UNCOMMITTED:
        logging.warning("%s: left out: Spark has not finished it.", child)
        continue
      if workdirs.is_workdir(child):
        seen.add(real)
        logging.info(
          "%s: left out, as it is the workdir of a run. To read what one has"
          " written, give its file.",
          child,
        )
        continue
      if not (child.is_symlink() and _is_found(real, top)):
        seen.add(real)
        kept.append(child.name)
    folders[:] = kept
    found += [folder / file for file in files if file[0] != "."]
  return sorted(file for file in found if _is_there(file))


def has_rows(file: pathlib.Path) -> bool:
  """Whether a file is read, by its name."""
  name = file.name
  return name.lower().endswith(formats.SUFFIXES) and not _NO_ROWS.fullmatch(
    name
  )


def unread(found: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """Returns the files that may hold rows and are not read."""
  return [
    file
    for file in found
    if not has_rows(file)
    and not _NO_ROWS.fullmatch(file.name)
    and (_format_of(file) or not _NO_DATA.fullmatch(file.name.lower()))
  ]


def refusal(file: pathlib.Path) -> str:
  """Returns why a file is not read, and the way out."""
  name = _format_of(file)
  if name:
    return foreign.refusal(file, name)
  if _is_unfinished(file):
    return (
      f"{file} is what a download or a program has not finished: start that"
      " again, and wait for its end."
    )
  return (
    f"{file} does not say by its name what it holds; rows are read from"
    f" {foreign.FORMATS} files. If it has JSON lines, add .jsonl to its name."
  )


def warn_of_missing(
  root: pathlib.Path,
  files: Iterable[pathlib.Path],
  others: Iterable[pathlib.Path],
  found: Iterable[pathlib.Path],
) -> None:
  """Says in the log which rows are not there, or are not read.

  Args:
    root: The directory.
    files: The files that are read.
    others: Those that are not, and may hold rows.
    found: All files.
  """
  unfinished = [file for file in others if _is_unfinished(file)]
  foreign_files = [file for file in others if file not in unfinished]
  for why, left_out in (
    (f"rows are read from {foreign.FORMATS} files", foreign_files),
    ("a download or a program has not finished them", unfinished),
  ):
    if left_out:
      logging.warning(
        "%s: left out, as %s: %s.", root, why, _named(left_out, root)
      )
  for missing in _missing_shards(files):
    logging.warning("%s: %s", root, missing)
  for file in found:
    missing = _missing_splits(file)
    if missing:
      logging.warning(
        "%s names splits that are not there, and whose rows are not read: %s."
        " Was everything copied or downloaded?",
        file,
        ", ".join(missing),
      )


def _missing_splits(file: pathlib.Path) -> list[str]:
  """Returns which splits are missing that `save_to_disk` has written."""
  if file.name != _SPLITS:
    return []
  splits = (json_text.object_or_none(file) or {}).get("splits")
  splits = splits if isinstance(splits, list) else []
  return [
    name
    for name in splits
    if isinstance(name, str) and not (file.parent / name).is_dir()
  ]


def _missing_shards(files: Iterable[pathlib.Path]) -> Iterator[str]:
  """Yields which of N files are missing, by names such as 00001-of-00003."""
  shards: dict[tuple, set[int]] = {}
  for file in files:
    match = _SHARD.fullmatch(file.name)
    if match:
      key = (str(file.parent / match[1]), match[3])
      shards.setdefault(key, set()).add(int(match[2]))
  for (start, total), there in shards.items():
    first = 1 if int(total) in there else 0
    missing = sorted({*range(first, int(total) + first)} - there)
    if missing:
      numbers = ", ".join(f"{n:0{len(total)}d}" for n in missing[:_SHOWN])
      more = ", ..." if len(missing) > _SHOWN else ""
      yield (
        f"{len(missing)} of the {int(total)} files {start}*-of-{total} are not"
        f" there ({numbers}{more}), and their rows are not read: was everything"
        " copied or downloaded?"
      )


def _is_there(file: pathlib.Path) -> bool:
  """Whether a path is a file, which may be read.

  Raises:
    FileNotFoundError: It is a link that leads nowhere.
    ValueError: It may not be read.
  """
  wanted = has_rows(file) or not _NO_DATA.fullmatch(file.name.lower())
  try:
    file.stat()
  except PermissionError as error:
    _not_readable(error)
  except OSError as error:
    if not wanted or not file.is_symlink():
      return False
    raise FileNotFoundError(
      f"{file} is a link to {file.readlink()}, which is not there: the rows in"
      " it would be missing. Fetch what it leads to (such as git annex get, or"
      " the download once more), or remove the link."
    ) from error
  if not file.is_file():
    return False
  if has_rows(file) and not os.access(file, os.R_OK):
    _not_readable(PermissionError(13, "Permission denied", str(file)))
  return True


def _not_readable(error: OSError) -> None:
  raise ValueError(
    f"{error.filename} cannot be read: {error.strerror}. Its rows would be"
    " missing: give yourself the right to read it (chmod -R u+rX), or take it"
    " out of the directory."
  ) from error


def _is_found(folder: pathlib.Path, top: pathlib.Path) -> bool:
  """Whether the files of a folder are found without a link to it."""
  if not folder.is_relative_to(top):
    return top.is_relative_to(folder)
  return not any(part[0] == "." for part in folder.relative_to(top).parts)


def _is_unfinished(file: pathlib.Path) -> bool:
  return bool(_UNFINISHED.fullmatch(file.name.lower()))


def _format_of(file: pathlib.Path) -> str:
  """Returns the format of a file that is not read, "" if it is unknown."""
  start = b""
  with contextlib.suppress(OSError), file.open("rb") as opened:
    start = opened.read(32)
  return foreign.format_of(file, start)


def _named(files: Sequence[pathlib.Path], root: pathlib.Path) -> str:
  names = ", ".join(str(file.relative_to(root)) for file in files[:_SHOWN])
  more = len(files) - _SHOWN
  return names + (f" and {more} more" if more > 0 else "")
