"""Exports for llama.cpp: `config.format="gguf"`."""

import json
import shutil

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import files  # noqa: E402
from perl_jax import params as params_lib  # noqa: E402
from perl_jax.interop import peft  # noqa: E402
from perl_jax.models.lora import LoraSpec  # noqa: E402
from perl_jax.tasks.initial import restore  # noqa: E402
from tests.interop.gguf import client, models, test_adapter, test_merged  # noqa: E402  # noqa: E402
from tests.interop.hub_server import hub_fixture  # noqa: E402, F401
from tests.interop.tiny import REFERENCES  # noqa: E402
from tests.tasks import tiny  # noqa: E402
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
  assert "convert_hf_to_gguf.py checkpoint --outtype f16" in card
  assert str(base.parent) not in card and str(tmp_path) not in card
  assert "llama-server -m base-f16.gguf --lora adapter.gguf" in card
  # llama.cpp has windows for Gemma and none for Mistral.
  assert ("attends to the last 5:" in card) == (family == "mistral")


def test_the_base_of_an_adapter_that_is_pushed_has_a_name(tmp_path, hub):
  """Whoever has neither our disk nor our paths loads the adapter onto it."""
  base = REFERENCES / "llama3" / "checkpoint"
  init = adapter_on(base, "adapter", tmp_path / "peft")
  with pytest.raises(ValueError, match=r"base_id=OWNER.*format=merged"):
    export(tmp_path / "out", init, format="gguf", push="policy")
  assert hub.repos == {} and not (tmp_path / "out").exists()
  export(
    tmp_path / "out", init, format="gguf", push="policy", base_id="org/base"
  )
  card = hub.repos["me/policy"]["README.md"].decode()
  assert "base_model: org/base" in card


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


@pytest.fixture(scope="module")
def on_gguf(tmp_path_factory):
  """(base, adapter on it) of a GGUF file: a file and a PEFT directory."""
  root = tmp_path_factory.mktemp("on_gguf")
  base, adapter = root / "base.gguf", root / "peft"
  role = test_merged.policy("qwen3_tiny", models.write(base, "qwen3_tiny"))
  adapter.mkdir()
  peft.save_adapter(
    adapter, role.config, role.lora, role.adapter, base=str(base)
  )
  return base, adapter, role


@pytest.mark.slow
def test_an_adapter_on_a_gguf_file_and_the_whole_model(on_gguf, tmp_path):
  base, adapter, role = on_gguf
  target = tmp_path / "out"
  found = export(
    target, adapter, base=str(base), format="gguf", gguf_model="f16"
  )
  assert {p.name for p in target.iterdir()} == {
    "adapter.gguf", "model-f16.gguf", "Modelfile", "README.md",
  }  # fmt: skip
  assert 0 < found["largest_logit_change"] < 0.05
  card = (target / "README.md").read_text()
  assert f"llama-server -m {base.name} --lora adapter.gguf" in card
  assert str(base.parent) not in card and str(tmp_path) not in card
  assert "largest_logit_change" in card
  deltas = test_adapter.deltas(target / "adapter.gguf")
  assert len(deltas) == 7 * role.config.num_layers
  read = restore.load(target / "model-f16.gguf", "", "policy", "init")
  merged = params_lib.merge(role.frozen, role.adapter, role.lora)
  assert read.config == restore.load(base, "", "policy", "init").config
  leaves = params_lib.flatten(read.role.frozen)
  for path, leaf in params_lib.flatten(merged).items():
    np.testing.assert_allclose(
      leaves[path], leaf, rtol=2.0**-11, atol=1e-7, err_msg=path
    )
  fields, _ = test_merged.contents(target / "model-f16.gguf")
  assert fields["tokenizer.chat_template"][0] == models.TEMPLATE


@pytest.mark.parametrize(
  ("overrides", "texts"),
  [
    ({"gguf_model": "q4_0"}, ("config.gguf_model='q4_0'", "q8_0")),
    ({"format": "merged", "gguf_model": "f16"}, ("config.format='merged'",)),
  ],
)
def test_fields_that_do_not_go_together(on_gguf, tmp_path, overrides, texts):
  base, adapter, _ = on_gguf
  with pytest.raises(ValueError) as caught:
    export(
      tmp_path / "out",
      adapter,
      **{"base": str(base), "format": "gguf"} | overrides,
    )
  for text in texts:
    assert text in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_policy_that_was_tuned_in_full(tmp_path):
  """Its own weights with the metadata of the file that it started from."""
  pytest.importorskip("xllamacpp", reason="needs llama.cpp, package xllamacpp")
  from tests.interop.gguf import test_llama_cpp

  base, run, target = (tmp_path / n for n in ("base.gguf", "sft", "out"))
  models.write(base, "gemma2_tiny", max_len=512)
  tiny.run(
    run,
    "sft",
    base=str(base),
    tuning="full",
    data__max_len=512,
    data__prompt_len=448,
  )
  with pytest.raises(ValueError, match=r"no adapter.*config\.gguf_model"):
    export(target, run, format="gguf")
  export(target, run, format="gguf", gguf_model="f32")
  files_ = {"model-f32.gguf", "Modelfile", "README.md"}
  assert {path.name for path in target.iterdir()} == files_
  start = restore.load(run, "best", "policy", "init")
  _, before = test_merged.contents(base)
  fields, after = test_merged.contents(target / "model-f32.gguf")
  assert fields["gemma2.context_length"][0] == 512
  norm = "blk.1.post_ffw_norm.weight"
  assert not np.array_equal(before[norm][1], after[norm][1])
  prompt = test_llama_cpp.prompt_of(start.config)
  with client.serving(target / "model-f32.gguf") as served:
    response, theirs = served.greedy(prompt, 8, probs=start.config.vocab_size)
  ours = test_llama_cpp.log_probs(
    start.config, LoraSpec(), start.role.frozen, prompt, response
  )
  np.testing.assert_allclose(ours, theirs, atol=0.01, rtol=0)
