"""Addresses of buckets in a config: copied, and written as they were given."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import report
from perl_jax import buckets, files
from perl_jax.data.sources.jsonl import paths as data_paths
from perl_jax.tasks import pipeline
from perl_jax.tasks.initial import manifest
from perl_jax.tasks.settings import paths, shared
from perl_jax.tasks.training import changes
from tests.buckets import fixtures
from tests.tasks import tiny

pytestmark = pytest.mark.parametrize(
  "bucket_server", [fixtures.MEMORY], indirect=True
)


def test_a_config_has_paths_while_it_is_used(address, store):
  store.write("rows/train.jsonl", files.json_line({"prompt": "a"}).encode())
  store.write("sft/model.json", b"{}")
  config = tiny.config(
    "sft", "jsonl", data__path=f"{address}/rows", policy__init=f"{address}/sft/"
  )
  local = paths.localized(config)
  assert data_paths.find_files(local.data.path).train == (
    buckets.path_of(f"{address}/rows/train.jsonl"),
  )
  assert (Path(local.policy.init) / "model.json").is_file()
  written = shared.as_written(local)
  assert written["data"]["path"] == f"{address}/rows"
  assert written == json.loads(config.to_json()) | {
    "policy": {**written["policy"], "init": f"{address}/sft"}
  }
  assert changes.review(json.loads(config.to_json()), written, Path()) == (
    changes.Review((), (), (), ())
  )
  with pytest.raises(FileNotFoundError, match=f"^{address}/none: nothing lies"):
    paths.localized(tiny.config("sft", base=f"{address}/none"))


def test_addresses_among_other_words(address, store):
  for name in ("lora_0", "lora_1", "reward"):
    store.write(f"{name}/config.json", b"{}")
  config = tiny.override(
    report.get_config(), {"runs": (f"lora={address}/lora_0,{address}/lora_1",)}
  )
  (found,) = paths.localized(config).runs
  local = [buckets.path_of(f"{address}/lora_{n}") for n in range(2)]
  assert found == f"lora={local[0]},{local[1]}"
  assert all((path / "config.json").is_file() for path in local)
  judges = ("gold", f"reward:{address}/reward")
  local = paths.localized(ConfigDict({"task": "judge", "judges": judges}))
  local = local.judges
  assert local == ("gold", f"reward:{buckets.path_of(f'{address}/reward')}")


def test_stages_of_a_pipeline_have_addresses(address):
  config = pipeline.stage_config(
    tiny.pipeline(), "rl", buckets.path_of(address)
  )
  written = shared.as_written(config)
  assert written["policy"]["init"] == f"{address}/sft"
  assert written["reward"]["init"] == f"{address}/reward"


def test_what_a_workdir_leads_to_is_fetched(address, store, tmp_path):
  store.write("runs/sft/model.json", b"{}")
  rl = buckets.path_of(f"{address}/runs/rl")
  for workdir, relative in (
    (rl, "../sft"),
    (tmp_path, f"{address}/runs/sft"),
  ):
    buckets.copies.copied.clear()
    found = manifest.beside(workdir, relative)
    assert found == buckets.path_of(f"{address}/runs/sft")
    assert (found / "model.json").is_file()
  assert not manifest.beside(rl, "../none").exists()
