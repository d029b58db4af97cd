"""Paths of a config: which fields are one, and "~" in them."""

import importlib
import sys

import pytest

from configs import report
from perl_jax import tasks
from perl_jax.tasks.settings import leaves, paths
from tests.tasks import tiny
from tests.tasks.settings.test_ranges import configs

# Text that is no path: choices, names, patterns, comma-separated lists.
NO_PATHS = {
  "task", "tuning", "base_dtype", "fit", "nonfinite", "loss", "estimator",
  "reduction",
  "head", "score_at", "checkpoint", "report_checkpoint", "role", "combine",
  "format", "gguf_model", "dtype",
  "model.preset", "model.remat", "model.dtype", "model.attention",
  "compute.remat", "compute.dtype", "compute.attention", "lora.targets",
  "data.name", "data.long", "data.columns", "data.threshold",
  "optimizer.name", "optimizer.schedule",
  "policy.checkpoint", "reward.checkpoint", "reward.score_at",
  "reward.combine", "reward.fn", "value.init", "rollouts.layout",
  "against.checkpoint", "field", "judges", "same_rows", "unfinished",
  "endpoint.url",
  "endpoint.model", "endpoint.key_variable", "endpoint.options",
  "best", "judge.by", "judge.same_rows", "judge.reward.checkpoint",
  "judge.reward.score_at", "judge.reward.combine", "judge.endpoint.url",
  "judge.endpoint.model", "judge.endpoint.key_variable",
  "judge.endpoint.options",
  "kl.estimator", "kl.place", "plan.topology", "plan.stages",
  "tracking.project", "tracking.run", "push", "base_id", "vary",
}  # fmt: skip


def test_every_text_is_a_path_or_is_not():
  found = {
    leaf.name
    for _, config in configs()
    for leaf in leaves.leaves(config)
    if isinstance(leaf.value, str)
  }
  assert found == NO_PATHS | set(paths.PATHS)


def test_home_is_that_of_the_shell(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  config = tiny.pipeline(
    base="~/base", data__path="runs/~x", rl__policy__init="~/runs/sft",
    sft__data__cache="~",
  )  # fmt: skip
  found = paths.expand(config)
  assert found.base == f"{tmp_path}/base"
  assert found.data.path == "runs/~x"
  assert found.rl.policy.init == f"{tmp_path}/runs/sft"
  assert found.sft.data.cache == str(tmp_path)
  assert found.is_locked and found.rl.is_locked
  assert config.base == "~/base"


def test_a_command_writes_below_the_home(monkeypatch, tmp_path):
  """And reads there: the message names the place where it looked."""
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "summary.json").write_text('{"kl": 1.0}')
  tasks.run(report.get_config().lock(), "~/runs")
  assert (tmp_path / "runs" / "report.html").is_file()
  assert not (tmp_path / "~").exists()
  config = tiny.config("sft", "jsonl", data__path="~/rows.jsonl")
  with pytest.raises(FileNotFoundError, match=f"{tmp_path}/rows.jsonl"):
    tasks.run(config, "~/sft")
  assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
  "address", ["az://bucket/run", "gs:/bucket/run", "file:///run", "gs://bucket"]
)
def test_an_address_makes_no_directory(monkeypatch, tmp_path, address):
  """Of what lies in no bucket; `gs:/` is what `Path` makes of `gs://`."""
  monkeypatch.chdir(tmp_path)
  wrong = (
    f"{address} is (an address, and what is taken|no address of something)"
  )
  with pytest.raises(ValueError, match=wrong):
    tasks.run(report.get_config().lock(), address)
  for fields in ("policy__init", "base", "data__path"):
    config = tiny.config("sft", "jsonl", **{fields: address})
    with pytest.raises(ValueError, match=wrong):
      tasks.run(config, tmp_path / "sft")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")]
)
def test_a_package_that_is_missing_is_said(
  monkeypatch, tmp_path, scheme, package, extra
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, package, None)
  registry = importlib.import_module("fsspec.registry")
  monkeypatch.setattr(registry, "registry", {})
  address = f"{scheme}://bucket/run"
  wrong = f"{address} is .* pip install {package}, or .* '{extra}'"
  with pytest.raises(ValueError, match=wrong):
    tasks.run(report.get_config().lock(), address)
  config = tiny.config("sft", "jsonl", policy__init=address)
  with pytest.raises(ValueError, match=wrong):
    tasks.run(config, tmp_path / "sft")
  assert not list(tmp_path.iterdir())


def test_a_cache_is_of_this_machine(tmp_path):
  config = tiny.config("sft", "jsonl", data__cache="gs://bucket/cache")
  with pytest.raises(ValueError, match=r"--config.data.cache=gs://\S+ is an "):
    tasks.run(config, tmp_path / "sft")


def test_the_hub_has_addresses():
  config = tiny.config("sft", "jsonl", data__path="hf://owner/name")
  paths.check(config, "C:x")


@pytest.mark.parametrize("field", ["path", "validation_path"])
def test_the_workdir_is_not_what_is_read(tmp_path, monkeypatch, field):
  """A run would read its own metrics and samples as rows."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "link").symlink_to(tmp_path / "data")
  for given in ("data", "data/", "./link", str(tmp_path / "data")):
    config = tiny.config("sft", "jsonl", **{f"data__{field}": given})
    with pytest.raises(ValueError, match=f"config.data.{field} is --workdir"):
      paths.check(config, str(tmp_path / "data"))
    paths.check(config, str(tmp_path / "data" / "run"))
  paths.check(tiny.config("sft", "jsonl"), str(tmp_path))
