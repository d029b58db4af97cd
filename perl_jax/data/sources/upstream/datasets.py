"""The TFDS builders: the files of each data set and their addresses."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from perl_jax.data.sources.upstream.files import (
  SourceFile,
  local_path,
  parse_rows,
)

_TASKMASTER = (
  "https://raw.githubusercontent.com/google-research-datasets/Taskmaster/master"
)
_HH = "https://raw.githubusercontent.com/anthropics/hh-rlhf/master"
_HH_SUBSETS = (
  "harmless-base",
  "helpful-base",
  "helpful-online",
  "helpful-rejection-sampled",
)

_PERL_CITATION = """\
@article{sidahmed2024perl,
  title={PERL: Parameter Efficient Reinforcement Learning from Human Feedback},
  author={Hakim Sidahmed and others},
  journal={arXiv preprint arXiv:2403.10704},
  year={2024},
}"""
_HH_CITATION = """\
@article{bai2022training,
  title={Training a Helpful and Harmless Assistant with Reinforcement Learning
    from Human Feedback},
  author={Yuntao Bai and others},
  journal={arXiv preprint arXiv:2204.05862},
  year={2022},
}"""


def _numbered(
  local: str, upstream: str, stem: str, number: int
) -> tuple[SourceFile, ...]:
  return tuple(
    SourceFile(
      local=f"{local}/{stem}_{n:02d}.json",
      url=f"{_TASKMASTER}/{upstream}/{stem}_{n:02d}.json",
    )
    for n in range(number)
  )


class UpstreamRows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base class of the builders: a TFDS split per part, an example per row.

  Args:
    local_dir: Directory to read instead of downloading, "" to download.
    parts: The parts to prepare; all of them if None.
    **kwargs: As `tfds.core.DatasetBuilder`.
  """

  VERSION = tfds.core.Version("1.0.0")
  PARTS: ClassVar[Mapping[str, tuple[SourceFile, ...]]]
  DESCRIPTION: ClassVar[str]
  HOMEPAGE: ClassVar[str]
  CITATION: ClassVar[str]
  # Upstream registers no checksums. Looking for them would need a package that
  # TFDS does not install by itself (importlib_resources).
  url_infos: ClassVar[Mapping[str, Any]] = {}

  def __init__(
    self,
    *,
    local_dir: str = "",
    parts: Sequence[str] | None = None,
    **kwargs: Any,
  ):
    self._local_dir = local_dir
    self._parts = tuple(self.PARTS if parts is None else parts)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=self.DESCRIPTION,
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      # The JSON text of the row, and the file and row number it came from.
      features=tfds.features.FeaturesDict(
        {"source": tfds.features.Text(), "row": tfds.features.Text()}
      ),
      # Rows keep their upstream order; shuffling is the input pipeline's.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    splits = {}
    for part in self._parts:
      files = self.PARTS[part]
      if self._local_dir:
        paths = [local_path(self._local_dir, file) for file in files]
      else:
        paths = dl_manager.download([file.url for file in files])
      names = [pathlib.PurePosixPath(file.local).name for file in files]
      splits[part] = self._generate_examples(
        list(zip(names, paths, strict=True))
      )
    return splits

  def _generate_examples(self, files):
    key = 0
    for name, path in files:
      for number, row in enumerate(parse_rows(os.fspath(path), name)):
        yield key, {"source": f"{name}:{number}", "row": json.dumps(row)}
        key += 1
    if not key:
      raise ValueError(f"{files[0][1]} holds no rows: the data set is empty.")


class TaskmasterCoffee(UpstreamRows):
  """Coffee orders: the parts `dialogs`, and `reward` (turns rated 0 or 1)."""

  PARTS: ClassVar = {
    "dialogs": _numbered("taskmaster_coffee/data", "TM-4-2024/data", "data", 8),
    "reward": _numbered(
      "taskmaster_coffee/reward", "TM-4-2024/reward", "reward", 7
    ),
  }
  DESCRIPTION = "Taskmaster-4: coffee-ordering dialogs and rated turns."
  HOMEPAGE = "https://github.com/google-research-datasets/Taskmaster"
  CITATION = _PERL_CITATION


class TaskmasterTicketing(UpstreamRows):
  """Movie tickets: the part `reward` (turns rated 0 or 1)."""

  PARTS: ClassVar = {
    "reward": _numbered(
      "taskmaster_ticketing/reward", "TM-3-2020/reward", "reward", 8
    ),
  }
  DESCRIPTION = "Taskmaster-3: rated turns of movie-ticket dialogs."
  HOMEPAGE = "https://github.com/google-research-datasets/Taskmaster"
  CITATION = _PERL_CITATION


class HhRlhf(UpstreamRows):
  """Harmlessness comparisons: transcripts `chosen` and `rejected`."""

  PARTS: ClassVar = {
    part: (
      SourceFile(
        local=f"hh_harmless/{part}.jsonl",
        url=f"{_HH}/harmless-base/{part}.jsonl.gz",
        clone=f"harmless-base/{part}.jsonl",
        siblings=_HH_SUBSETS,
      ),
    )
    for part in ("train", "test")
  }
  DESCRIPTION = "hh-rlhf, harmless-base: pairs of transcripts."
  HOMEPAGE = "https://github.com/anthropics/hh-rlhf"
  CITATION = _HH_CITATION


BUILDERS: Mapping[str, type[UpstreamRows]] = {
  builder.name: builder
  for builder in (TaskmasterCoffee, TaskmasterTicketing, HhRlhf)
}
