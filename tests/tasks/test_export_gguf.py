"""Exports for llama.cpp: `config.format="gguf"`."""

import json
import shutil

import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import files  # noqa: E402
from tests.interop.tiny import REFERENCES  # noqa: E402
from tests.tasks.test_export import export  # noqa: E402

ARCHITECTURES = {
  "llama2": "llama",
  "llama3": "llama",
  "mistral": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma": "gemma",
  "gemma2": "gemma2",
  "gemma3": "gemma3",
}


def adapter_on(base, name, target):
  """A reference's adapter that says which checkpoint it is for."""
  shutil.copytree(base.parent / name, target)
  path = target / "adapter_config.json"
  settings = json.loads(path.read_text())
  files.write_json(path, settings | {"base_model_name_or_path": str(base)})
  return target


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_an_adapter_on_a_checkpoint_of_transformers(family, tmp_path):
  base = REFERENCES / family / "checkpoint"
  target = tmp_path / "out"
  init = adapter_on(base, "adapter", tmp_path / "peft")
  export(target, init, format="gguf")
  assert {p.name for p in target.iterdir()} == {"adapter.gguf", "README.md"}
  fields = gguf.GGUFReader(target / "adapter.gguf").fields
  found = {name: field.contents() for name, field in fields.items()}
  assert found["general.architecture"] == ARCHITECTURES[family]
  assert found["adapter.lora.alpha"] == 6.0
  card = (target / "README.md").read_text()
  assert f"convert_hf_to_gguf.py {base} --outtype f16" in card
  assert "llama-server -m base-f16.gguf --lora adapter.gguf" in card
  # llama.cpp has windows for Gemma and none for Mistral.
  assert ("attends to the last 5:" in card) == (family == "mistral")


def test_a_reward_model_is_refused(tmp_path):
  base = REFERENCES / "llama3" / "checkpoint"
  init = adapter_on(base, "reward_adapter", tmp_path / "peft")
  with pytest.raises(ValueError, match=r"role='reward'.*head.*'adapter'"):
    export(tmp_path / "out", init, role="reward", format="gguf")
  assert [p.name for p in tmp_path.iterdir()] == ["peft"]


def test_a_whole_checkpoint_of_transformers_is_refused(tmp_path):
  base = REFERENCES / "llama3" / "checkpoint"
  match = r"has no adapter.*format='merged'.*convert_hf_to_gguf\.py"
  with pytest.raises(ValueError, match=match):
    export(tmp_path / "out", base, format="gguf")
  assert not list(tmp_path.iterdir())
