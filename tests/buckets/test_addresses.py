"""Which path stands for which address."""

from pathlib import Path

import pytest

from perl_jax import buckets


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("PERL_JAX_CACHE", str(tmp_path))
  return tmp_path / "buckets"


def test_an_address_has_a_path_and_back(cache):
  for address, path in (
    ("gs://bucket/runs/sft", "gs/bucket/runs/sft"),
    ("s3://my.bucket-1/a/", "s3/my.bucket-1/a"),
  ):
    assert buckets.path_of(address) == cache / path
    assert buckets.address_of(cache / path) == address.rstrip("/")
  assert buckets.address_of("runs/sft") == ""
  assert buckets.address_of(cache / "about" / "x.json") == ""


@pytest.mark.parametrize("name", ["PERL_JAX_CACHE", "XDG_CACHE_HOME"])
def test_a_cache_beside_the_current_directory(monkeypatch, tmp_path, name):
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.delenv("PERL_JAX_CACHE")
  above = {"PERL_JAX_CACHE": "..", "XDG_CACHE_HOME": f"{tmp_path}/here/.."}
  monkeypatch.setenv(name, f"{above[name]}/cache")
  path = buckets.path_of("gs://bucket/runs/sft")
  assert path.is_relative_to(tmp_path / "cache") and ".." not in path.parts
  assert buckets.address_of(path) == "gs://bucket/runs/sft"
  assert buckets.named(f"see {path}") == "see gs://bucket/runs/sft"
  assert buckets.named(buckets.here(path)) == buckets.here(path)


def test_what_is_an_address():
  assert buckets.is_address("gs://b/x") and buckets.is_address("s3://b/x")
  for other in (
    "runs/gs",
    "/gs://b/x",
    "hf://o/n",
    "gs:/b/x",
    Path("gs://b/x"),
  ):
    assert not buckets.is_address(other)


@pytest.mark.parametrize(
  "bad", ["gs://", "gs://b", "gs://bucket/", "gs:///x", "gs://bucket//x",
          "gs://bucket/../x", "s3://bucket/a/./b", "s3://Bucket_x!/a"]
)  # fmt: skip
def test_malformed_addresses_are_refused(bad):
  with pytest.raises(
    ValueError, match="is no address of something in a bucket"
  ):
    buckets.path_of(bad)


def test_values_have_addresses_instead_of_paths(cache):
  found = buckets.named(
    {"init": f"{cache}/gs/b/sft", "list": [f"see {cache}/s3/b/x.", 1, None]}
  )
  assert found == {"init": "gs://b/sft", "list": ["see s3://b/x.", 1, None]}


def test_runs_beside_each_other_can_be_moved_together(cache, tmp_path):
  sft, rl = cache / "gs/b/runs/sft", cache / "gs/b/runs/rl"
  assert buckets.relative(sft, rl) == "../sft"
  assert buckets.relative(sft, cache / "gs/other/rl") == "gs://b/runs/sft"
  assert buckets.relative(sft, tmp_path / "rl") == "gs://b/runs/sft"
  assert buckets.relative(tmp_path / "sft", rl) == str(tmp_path / "sft")
  assert buckets.relative(tmp_path / "sft", tmp_path / "rl") == "../sft"
