"""The TFDS builders: what they store, and the upstream addresses."""

import json

import pytest

from perl_jax.data.sources import upstream as upstream_lib
from tests.data.sources.upstream import cases


def test_the_builder_is_an_ordinary_tfds_builder(copy, tmp_path):
  builder = upstream_lib.TaskmasterCoffee(
    local_dir=str(copy), parts=("reward",), data_dir=str(tmp_path / "tfds")
  )
  builder.download_and_prepare(file_format="array_record")
  source = builder.as_data_source(split="reward")
  assert builder.info.splits["reward"].num_examples == len(cases.ROWS)
  assert json.loads(source[3]["row"]) == cases.ROWS[3]
  assert source[3]["source"] == b"reward_00.json:3"


def test_an_empty_data_set_is_refused(tmp_path):
  cases.write(tmp_path / "data/hh_harmless/test.jsonl", b"")
  with pytest.raises(ValueError, match=r"test.jsonl holds no rows"):
    cases.read(tmp_path / "data", tmp_path, "hh_rlhf", "test")


def test_upstream_addresses():
  urls = [
    file.url
    for builder in upstream_lib.BUILDERS.values()
    for files in builder.PARTS.values()
    for file in files
  ]
  task = "https://raw.githubusercontent.com/google-research-datasets/Taskmaster"
  expected = [
    *(f"{task}/master/TM-4-2024/data/data_{n:02d}.json" for n in range(8)),
    *(f"{task}/master/TM-4-2024/reward/reward_{n:02d}.json" for n in range(7)),
    *(f"{task}/master/TM-3-2020/reward/reward_{n:02d}.json" for n in range(8)),
    *(
      "https://raw.githubusercontent.com/anthropics/hh-rlhf/master/"
      f"harmless-base/{part}.jsonl.gz"
      for part in ("train", "test")
    ),
  ]
  assert urls == expected
