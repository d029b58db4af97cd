"""TFDS builders of the public data sets: upstream rows, prepared once.

Each builder stores the upstream rows unchanged (their JSON text) in ArrayRecord
files, which can be read without TensorFlow. `taskmaster` and `hh` turn rows
into records afterwards, so that prepared files stay valid when that code
changes.
Use `read_rows`; the builders can also be used like any other TFDS data
set (`builder.download_and_prepare(file_format="array_record")`,
`builder.as_data_source()`).

Files come from the upstream addresses, or from a directory with the layout

    taskmaster_coffee/data/data_00.json ... data_07.json
    taskmaster_coffee/reward/reward_00.json ... reward_06.json
    taskmaster_ticketing/reward/reward_00.json ... reward_07.json
    hh_harmless/train.jsonl, hh_harmless/test.jsonl

each of them plain or with `.gz` added. Prepared files are stored in the cache
directory under a fingerprint of their source (upstream addresses, or the names
and contents of the local files), so that two local copies are kept apart.
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
