"""Rows that lie in a bucket: a file, and a copy of a public data set."""

import pytest

from perl_jax import files
from perl_jax.data.sources import registry
from perl_jax.tasks.settings import paths
from tests.buckets import servers
from tests.tasks import tiny

pytestmark = [*servers.WARNINGS]
PAIRS = [
  {
    "chosen": f"\n\nHuman: {i} mochas?\n\nAssistant: Yes, {i}.",
    "rejected": f"\n\nHuman: {i} mochas?\n\nAssistant: A stone.",
  }
  for i in range(10)
]


def lines(rows):
  return "".join(map(files.json_line, rows)).encode()


def test_rows_of_a_file(address, store):
  rows = [
    {"prompt": f"{i} mochas?", "chosen": "Yes.", "rejected": "A stone."}
    for i in range(10)
  ]
  store.write("pairs/train.jsonl", lines(rows))
  config = tiny.config("reward", "jsonl", data__path=f"{address}/pairs")
  local = paths.localized(config).data
  found = registry.load("jsonl", "preferences", path=local.path)
  said = [*found.train, *found.validation]
  assert sorted(row.prompt[0]["content"] for row in said) == sorted(
    row["prompt"] for row in rows
  )


def test_a_copy_of_a_public_data_set(address, store, tmp_path):
  for part, rows in (("train", PAIRS[:8]), ("test", PAIRS[8:])):
    store.write(f"copies/hh_harmless/{part}.jsonl", lines(rows))
  config = tiny.config("reward", "hh_rlhf", data__dir=f"{address}/copies")
  local = paths.localized(config).data
  found = registry.load(
    "hh_rlhf", "preferences", data_dir=local.dir, cache_dir=str(tmp_path)
  )
  said = {row.chosen for row in (*found.train, *found.validation)}
  assert len(said) > 1 and said <= {f"Yes, {i}." for i in range(10)}


def test_what_is_not_there_is_named_by_its_address(address):
  config = tiny.config("reward", "hh_rlhf", data__dir=f"{address}/none")
  with pytest.raises(FileNotFoundError, match=f"^{address}/none: nothing lies"):
    paths.localized(config)
