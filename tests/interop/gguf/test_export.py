"""Which GGUF files are written of a policy, and how they are to be used."""

import re
import shlex

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import roles  # noqa: E402
from perl_jax.interop.gguf import export  # noqa: E402
from perl_jax.interop.gguf.export import Origin, Plan  # noqa: E402
from perl_jax.models.lora import LoraSpec  # noqa: E402
from tests.interop.gguf import models, test_merged  # noqa: E402

CFG = models.config("llama_tiny")
TUNED = roles.Role(roles.Backbone(CFG, LoraSpec()), {}, {})
ADAPTED = test_merged.policy("llama_tiny", {})
FROM_GGUF = Origin("gguf", "/m/base.gguf", changed=False)
FROM_HF = Origin("huggingface", "/m/base", changed=False)
DRAWN = Origin("random", "", changed=False)


def changed(origin):
  return Origin(origin.kind, origin.path, changed=True)


@pytest.mark.parametrize(
  ("role", "origin", "model", "expected"),
  [
    (ADAPTED, FROM_GGUF, "", Plan(True, "")),
    (ADAPTED, FROM_GGUF, "f16", Plan(True, "f16")),
    (ADAPTED, FROM_HF, "", Plan(True, "")),
    (ADAPTED, changed(FROM_GGUF), "q8_0", Plan(False, "q8_0")),
    (TUNED, changed(FROM_GGUF), "bf16", Plan(False, "bf16")),
    (TUNED, FROM_GGUF, "f32", Plan(False, "f32")),
  ],
)
def test_what_can_be_written(role, origin, model, expected):
  assert export.plan(role, origin, model, "config.init='x'") == expected


@pytest.mark.parametrize(
  ("role", "origin", "model", "texts"),
  [
    (ADAPTED, FROM_GGUF, "q4_0", ("gguf_model='q4_0'", "q8_0", "''")),
    (ADAPTED, FROM_HF, "f16", ("no GGUF file", "convert_hf_to_gguf.py")),
    (ADAPTED, DRAWN, "", ("config.init='x'", "trained here", "'merged'")),
    (ADAPTED, changed(FROM_HF), "", ("trained here", "'merged'")),
    (ADAPTED, changed(FROM_GGUF), "", ("trained here", "gguf_model")),
    (TUNED, changed(FROM_GGUF), "", ("no adapter", "gguf_model")),
    (TUNED, FROM_HF, "", ("no adapter", "convert_hf_to_gguf.py")),
  ],
)
def test_what_cannot_be_written_is_refused_with_a_way_out(
  role, origin, model, texts
):
  with pytest.raises(ValueError) as caught:
    export.plan(role, origin, model, "config.init='x'")
  for text in texts:
    assert text in str(caught.value)


def save(tmp_path, model, template=None, hub=""):
  like, out = tmp_path / "a base.gguf", tmp_path / "out"
  out.mkdir()
  role = test_merged.policy("llama_tiny", models.write(like, "llama_tiny"))
  origin = Origin("gguf", str(like), changed=False)
  plan = export.plan(role, origin, model, "config.init='x'")
  return like, out, export.save(out, role, origin, plan, template, hub)


def commands(markdown):
  """Each command of the blocks, as a shell splits it."""
  blocks = re.findall(r"```bash\n(.*?)```", markdown, re.DOTALL)
  return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_an_adapter_on_a_gguf_file(tmp_path):
  like, out, text = save(tmp_path, "", hub="owner/files")
  assert [p.name for p in out.iterdir()] == ["adapter.gguf"]
  assert commands(text) == [
    ["hf", "download", "owner/files", like.name, "--local-dir", "."],
    ["llama-server", "-m", like.name, "--lora", "adapter.gguf"],
  ]
  assert str(tmp_path) not in text
  assert "Ollama takes whole models only" in text


def test_the_whole_model_as_well(tmp_path):
  _, out, text = save(tmp_path, "q8_0", "{{ messages }}")
  names = {"adapter.gguf", "model-q8_0.gguf", "Modelfile"}
  assert {p.name for p in out.iterdir()} == names
  assert (out / "Modelfile").read_text() == "FROM ./model-q8_0.gguf\n"
  assert commands(text)[1:] == [
    ["llama-server", "-m", "model-q8_0.gguf"],
    ["ollama", "create", "perl", "-f", "Modelfile"],
    ["ollama", "run", "perl"],
  ]
  fields, _ = test_merged.contents(out / "model-q8_0.gguf")
  assert fields["tokenizer.chat_template"][0] == "{{ messages }}"
  adapter = gguf.GGUFReader(out / "adapter.gguf")
  assert adapter.fields["general.architecture"].contents() == "llama"
  scale = adapter.fields["adapter.lora.alpha"].contents() / 3
  np.testing.assert_allclose(scale, test_merged.SPEC.scale, rtol=1e-6)
