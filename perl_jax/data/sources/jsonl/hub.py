"""Data sets of the Hugging Face hub, read with the `datasets` package.

    hf://OWNER/NAME
    hf://OWNER/NAME?config=CONFIG&split=train[:1000]&revision=COMMIT
    hf:///PATH/OF/A/LOCAL/DIRECTORY

Without `split`, the names of the splits say what they are for, as the names of
files do. Code of a data set is never run.
"""

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Iterator
from typing import Any

PREFIX = "hf://"
_OPTIONS = {"config": "name", "split": "split", "revision": "revision"}
_BATCH_ROWS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """One split of a data set.

  Attributes:
    name: Address of the data set, and the split if it has several.
    data: The `datasets.Dataset`.
  """

  name: str
  data: Any

  def __str__(self) -> str:
    return self.name

  def batches(self) -> Iterator[Any]:
    """Yields the rows as tables of `pyarrow`."""
    yield from self.data.with_format("arrow").iter(_BATCH_ROWS)


def find(path: str) -> dict[Split, str]:
  """Returns the splits of a data set, each with its name.

  Args:
    path: An address as above.

  Raises:
    ValueError: The package is missing, the address has an unknown option, or
      the data set cannot be loaded.
  """
  name, _, query = path.removeprefix(PREFIX).partition("?")
  given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
  unknown = given.keys() - _OPTIONS
  if unknown or not name:
    raise ValueError(
      f"{path}: an address is hf://OWNER/NAME, and after a ? may follow"
      f" {', '.join(_OPTIONS)}, as in hf://OWNER/NAME?split=train."
    )
  try:
    import datasets
  except ImportError as error:
    raise ValueError(
      f"{path} is read with a package that is not installed: pip install"
      " datasets"
    ) from error
  options = {_OPTIONS[key]: value for key, value in given.items()}
  try:
    with _quiet(datasets):
      loaded = datasets.load_dataset(name, **options)
  except Exception as error:  # Of many kinds: the network, files, configs.
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{path} could not be loaded by `datasets`: {reason} Check the name, or"
      " download the files and give their directory as data.path."
    ) from error
  if isinstance(loaded, dict):
    return {Split(f"{path}/{key}", data): key for key, data in loaded.items()}
  return {Split(path, loaded): "train"}


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
  """Keeps `datasets` from drawing over the terminal."""
  were_disabled = datasets.are_progress_bars_disabled()
  datasets.disable_progress_bars()
  try:
    yield
  finally:
    if not were_disabled:
      datasets.enable_progress_bars()
