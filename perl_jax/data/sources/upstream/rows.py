"""Reads the rows of a public data set, which is prepared on the first use."""

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import requests
import tensorflow_datasets as tfds
from absl import logging

from perl_jax import names
from perl_jax.data.sources.upstream.datasets import BUILDERS, UpstreamRows
from perl_jax.data.sources.upstream.files import SourceFile, fingerprint

# How long upstream may take to answer.
ANSWER_SECONDS = 20


def read_rows(
  dataset: str, part: str, data_dir: str = "", cache_dir: str = ""
) -> list[dict[str, Any]]:
  """Returns the upstream rows of one part of a data set, in upstream order.

  Args:
    dataset: A key of `BUILDERS`.
    part: One of the builder's `PARTS`; the parts are prepared independently.
    data_dir: Directory with local copies of the files, "" to download them.
    cache_dir: Directory for prepared files; by default `$PERL_JAX_CACHE`, or
      `perl_jax` in `$XDG_CACHE_HOME` or `~/.cache`.

  Raises:
    ValueError: There is no such data set or part, or a file is malformed; names
      the file.
    FileNotFoundError: A local file is missing, or a download failed; names the
      file, the config field and the upstream address.
  """
  cls = BUILDERS[_one_of("data set", dataset, BUILDERS)]
  files = cls.PARTS[_one_of(f"part of {dataset}", part, cls.PARTS)]
  root = pathlib.Path(cache_dir).expanduser() if cache_dir else default_cache()
  # The fingerprint reads all files, so a missing one is found before writing.
  place = root / fingerprint(files, data_dir) / part

  def make_builder() -> UpstreamRows:
    return cls(local_dir=data_dir, parts=(part,), data_dir=os.fspath(place))

  with _quiet_tfds():
    builder = make_builder()
    prepared = builder.is_prepared()
  if not prepared and not data_dir:
    _require_reachable(files)
  with _quiet_tfds():
    if not prepared:
      try:
        _prepare(builder, os.fspath(root / "downloads"), files)
      except OSError:
        # Another process may have prepared the same files in the meantime.
        builder = make_builder()
        if not builder.is_prepared():
          raise
    examples = builder.as_data_source(split=part)
    return [json.loads(example["row"]) for example in examples]


def _require_reachable(files: Sequence[SourceFile]) -> None:
  """Says what is waited for, and asks upstream for its first bytes.

  TFDS tries again for minutes, and without a limit, before it says anything.
  """
  url = files[0].url
  logging.info(
    "downloading %d file(s), the first from %s; its answer is waited for up to"
    " %d s, twice",
    len(files),
    url,
    ANSWER_SECONDS,
  )
  for last in (False, True):
    try:
      with requests.get(url, stream=True, timeout=ANSWER_SECONDS) as answer:
        answer.raise_for_status()
        return
    except requests.exceptions.RequestException as error:
      if last or isinstance(error, requests.exceptions.HTTPError):
        raise _not_downloaded(files, error) from error


def _not_downloaded(
  files: Sequence[SourceFile], error: Exception
) -> FileNotFoundError:
  why = " ".join(str(error).split())
  return FileNotFoundError(
    f"{files[0].url} could not be downloaded ({why}). Set `data.dir` to a"
    f" directory with local copies, laid out as {files[0].local}."
  )


def default_cache() -> pathlib.Path:
  """Returns the default directory for prepared files."""
  if os.environ.get("PERL_JAX_CACHE"):
    return pathlib.Path(os.environ["PERL_JAX_CACHE"]).expanduser()
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(cache).expanduser() / "perl_jax"


def _one_of(what: str, name: str, known: Mapping[str, Any]) -> str:
  if name not in known:
    hint = names.did_you_mean(name, known)
    raise ValueError(
      f"There is no {what} {name!r}; there is {', '.join(known)}.{hint}"
    )
  return name


def _prepare(
  builder: UpstreamRows, download_dir: str, files: Sequence[SourceFile]
) -> None:
  """Downloads and prepares; TFDS renames the directory when it is complete."""
  try:
    builder.download_and_prepare(
      download_dir=download_dir,
      file_format="array_record",
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
  except (
    tfds.download.DownloadError,
    requests.exceptions.RequestException,
  ) as error:
    raise _not_downloaded(files, error) from error


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Keeps TFDS from printing, and restores its settings afterwards."""
  bars = tfds.core.utils.tqdm_utils
  active = bars._active
  verbosity = logging.get_verbosity()
  bars.display_progress_bar(False)
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    bars.display_progress_bar(active)
    logging.set_verbosity(verbosity)
