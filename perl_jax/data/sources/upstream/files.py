"""Upstream files: local paths, rows and fingerprints."""

import dataclasses
import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from perl_jax import json_text
from perl_jax.data.sources.jsonl import foreign


@dataclasses.dataclass(frozen=True)
class SourceFile:
  """One upstream file.

  Attributes:
    local: Path below the local data directory, without `.gz`.
    url: Upstream address.
    clone: Path in a clone of the upstream repository, without `.gz`; "" if
      clones are laid out otherwise.
    siblings: Folders of the repository with files of the same name and kind,
      each of which may be the local data directory.
  """

  local: str
  url: str
  clone: str = ""
  siblings: tuple[str, ...] = ()


def local_path(data_dir: str, file: SourceFile) -> pathlib.Path:
  """Returns the path of a local copy, plain or with `.gz`.

  Args:
    data_dir: The directory that holds that of the data set, or that of the data
      set itself, such as `copies` or `copies/hh_harmless`; or a clone of the
      upstream repository, or a folder of it.
    file: The upstream file.

  Raises:
    FileNotFoundError: There is neither.
  """
  root = pathlib.Path(data_dir).expanduser()
  plain = root / file.local
  folder, *rest = pathlib.PurePosixPath(file.local).parts
  places = [plain]
  if file.clone:
    places.append(root / file.clone)
  if root.resolve().name in (folder, *file.siblings):
    places.append(root.joinpath(*rest))
  for place in places:
    for path in (place, place.with_name(place.name + ".gz")):
      if path.is_file():
        return path
  raise FileNotFoundError(
    f"{plain} (or the same with .gz) does not exist, but `data.dir` is"
    f" {data_dir!r}: put a copy of {file.url} there,"
    + (f" or name a clone that has {file.clone}," if file.clone else "")
    + " or leave `data.dir` empty to download it."
  )


def parse_rows(path: str, name: str) -> Iterator[dict[str, Any]]:
  """Yields the rows of a file: a JSON list, or one JSON object per line.

  Args:
    path: The file, plain or gzip-compressed (recognised by its first bytes,
      since downloads have arbitrary names).
    name: Its upstream name; one that ends in `.jsonl` has a row per line.

  Raises:
    ValueError: The file is not UTF-8, gzip or JSON, or does not hold rows;
      names the file and the line.
  """
  data = pathlib.Path(path).read_bytes()
  if foreign.format_of(pathlib.Path(name), data[:64]) == "lfs":
    raise ValueError(foreign.refusal(pathlib.Path(path), "lfs"))
  try:
    if data[:2] == b"\x1f\x8b":
      data = gzip.decompress(data)
    text = data.decode("utf-8")
  except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
    raise ValueError(
      f"{path} ({name}) is not a text file, plain or gzip: {error}."
    ) from error
  if name.endswith(".jsonl"):
    # Not splitlines: JSON text may hold U+2028 and the like.
    lines = text.split("\n")
    rows = (
      _parse_json(line, f"{path}:{number}")
      for number, line in enumerate(lines, 1)
      if line.strip()
    )
  else:
    rows = _parse_json(text, path)
    if not isinstance(rows, list):
      raise ValueError(f"{path} must hold a JSON list of rows.")
  for number, row in enumerate(rows):
    if not isinstance(row, dict):
      raise ValueError(
        f"{path}: row {number} must be a JSON object, but is {row!r:.60}."
      )
    yield row


def fingerprint(files: Sequence[SourceFile], data_dir: str) -> str:
  """Returns a name for the source of files, for the cache.

  It is a hash of the addresses, or with `data_dir` of the names and contents of
  the local files.
  """
  if not data_dir:
    text = "\n".join(file.url for file in files)
    return "upstream-" + hashlib.sha256(text.encode()).hexdigest()[:16]
  total = hashlib.sha256()
  for path in [local_path(data_dir, file) for file in files]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    total.update(f"{path.name}\n{path.stat().st_size}\n{digest}\n".encode())
  return "local-" + total.hexdigest()[:16]


def _parse_json(text: str, where: str) -> Any:
  try:
    return json_text.parse(text)
  except json_text.Fault as error:
    raise ValueError(
      f"{where} is not valid JSON: {error}. Fetch the file again, or repair it."
    ) from error
