"""TFDS builders of the public data sets: upstream rows, prepared once.

Each builder keeps the upstream rows as they are (their JSON text), as
ArrayRecord files that need no TensorFlow to be read. Normalising them is done
afterwards (`taskmaster.py`, `hh.py`), so that prepared files do not go stale
when it changes. `read_rows` is the way in; the builders can also be used as any
other TFDS data set (`builder.download_and_prepare(file_format="array_record")`,
`builder.as_data_source()`).

Files come from the upstream addresses, or from a directory with the layout

    taskmaster_coffee/data/data_00.json ... data_07.json
    taskmaster_coffee/reward/reward_00.json ... reward_06.json
    taskmaster_ticketing/reward/reward_00.json ... reward_07.json
    hh_harmless/train.jsonl, hh_harmless/test.jsonl

each of them plain or with `.gz` added. Prepared files lie in the
cache directory under a fingerprint of their source (upstream addresses, or the
names and contents of the local files), so two local copies never meet in it.
"""

from perl_jax.data.sources.upstream.datasets import (
  BUILDERS,
  HhRlhf,
  TaskmasterCoffee,
  TaskmasterTicketing,
  UpstreamRows,
)
from perl_jax.data.sources.upstream.files import SourceFile
from perl_jax.data.sources.upstream.rows import default_cache, read_rows

__all__ = [
  "BUILDERS",
  "HhRlhf",
  "SourceFile",
  "TaskmasterCoffee",
  "TaskmasterTicketing",
  "UpstreamRows",
  "default_cache",
  "read_rows",
]
