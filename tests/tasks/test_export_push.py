"""Exports that are pushed to a hub, and their cards as the hub reads them."""

import json
import types

import pytest
from huggingface_hub import ModelCard

from configs import export as export_config
from perl_jax.tasks import export as export_task
from tests.interop.hub_server import hub_fixture  # noqa: F401
from tests.tasks import tiny
from tests.tasks.test_export import export


def test_nobody_is_logged_in_is_said_before_anything_is_read(
  tmp_path, monkeypatch
):
  monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
  with pytest.raises(ValueError, match="hf auth login"):
    export(tmp_path / "out", tmp_path / "no such run", push="policy")


@pytest.mark.slow
def test_a_merged_policy_arrives_whole(finished, tmp_path, hub, caplog):
  with caplog.at_level("INFO", logger="absl"):
    export(
      tmp_path / "out", finished / "rl", format="merged", push="team/policy"
    )
  place = f"team/policy (private), {hub.url}/team/policy/commit/0123"
  assert f"export: pushed to {place}" in caplog.text
  files = {
    str(path.relative_to(tmp_path / "out")): path.read_bytes()
    for path in (tmp_path / "out").rglob("*")
    if path.is_file()
  }
  assert hub.repos["team/policy"] == files
  card = ModelCard(files["README.md"].decode())
  assert card.data.license == "unknown"
  assert card.data.model_name == "policy"
  summary = json.loads((finished / "rl" / "summary.json").read_text())
  numbers = {r.metric_type: r.metric_value for r in card.data.eval_results}
  assert numbers["reward"] == pytest.approx(summary["reward_after"])
  assert numbers["kl"] == pytest.approx(summary["kl"])
  assert f"step {summary['checkpoint_step']}" in card.text
  assert card.data.eval_results[0].dataset_type == "coffee_bar"


CACHED = "/c/hub/models--org--base/snapshots/0a1b"


def named(kind, path, **fields):
  """`base_id` of an export of an adapter on such a base."""
  values = {"init": "runs/rl", "push": "policy"} | fields
  config = tiny.override(export_config.get_config(), values)
  start = types.SimpleNamespace(source={"kind": kind, "path": path})
  found = export_task.with_base_id(config, start)
  assert config.base_id == fields.get("base_id", "")
  return found.base_id


@pytest.mark.parametrize(
  ("kind", "path", "fields", "name"),
  [
    ("huggingface", CACHED, {}, "org/base"),
    ("huggingface", CACHED, {"base_id": "my/own"}, "my/own"),
    ("huggingface", "/d/base", {"base_id": "my/own"}, "my/own"),
    ("huggingface", "/d/base", {"format": "merged"}, ""),
    ("huggingface", CACHED, {"format": "gguf"}, "org/base"),
    ("gguf", f"{CACHED}/base.gguf", {"format": "gguf"}, "org/base"),
    ("gguf", "/d/a.gguf", {"format": "gguf", "gguf_model": "f16"}, ""),
    ("random", "", {"format": "gguf"}, ""),  # which is refused as such
    ("huggingface", CACHED, {"push": ""}, ""),
  ],
)
def test_the_name_of_a_base_on_the_hub(kind, path, fields, name):
  assert named(kind, path, **fields) == name


@pytest.mark.parametrize(
  ("kind", "form", "way_out"),
  [
    ("huggingface", "adapter", "OWNER/NAME.*--config.format=merged"),
    ("huggingface", "gguf", "OWNER/NAME.*--config.format=merged"),
    ("gguf", "gguf", "OWNER/NAME.*--config.gguf_model=q8_0"),
    ("gguf", "adapter", "on no hub.*--config.format=merged"),
  ],
)
def test_a_base_without_a_name_is_refused(kind, form, way_out):
  with pytest.raises(ValueError, match=way_out):
    named(kind, "/d/base.gguf", format=form)


@pytest.mark.slow
def test_an_export_that_fails_pushes_nothing(
  finished, tmp_path, hub, monkeypatch
):
  def fail(*_, **__):
    raise ValueError("in the middle")

  monkeypatch.setattr(export_task.hf_export, "save_model", fail)
  with pytest.raises(ValueError, match="in the middle"):
    export(tmp_path / "out", finished / "rl", format="merged", push="policy")
  assert hub.repos == {}
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_base_of_an_adapter_that_is_pushed_can_be_found(
  finished, tmp_path, hub
):
  """By its name on the hub; a path of this machine is refused."""
  with pytest.raises(ValueError, match=r"is on no hub.*format=merged"):
    export(tmp_path / "out", finished / "rl", push="policy")
  base = tmp_path / "base"
  export(base, finished / "sft", format="merged")
  card = (base / "README.md").read_text()
  licensed = card.replace("license: unknown", "license: apache-2.0")
  assert licensed != card
  (base / "README.md").write_text(licensed)
  rl = tmp_path / "rl"
  tiny.run(
    rl, "rl", base=str(base), reward__init=str(finished / "reward"), steps=2
  )
  with pytest.raises(ValueError, match=r"--config\.base_id=OWNER/NAME"):
    export(tmp_path / "out", rl, push="policy")
  assert hub.repos == {}
  export(tmp_path / "out", rl, push="policy", base_id="org/base")
  files = hub.repos["me/policy"]
  settings = json.loads(files["adapter_config.json"])
  assert settings["base_model_name_or_path"] == "org/base"
  found = ModelCard(files["README.md"].decode())
  assert found.data.base_model == "org/base"
  assert found.data.license == "apache-2.0"
  assert str(tmp_path) not in files["README.md"].decode()
