"""Models that see images too: their language model is the one that is read."""

import json
import logging
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from perl_jax.data.text.hugging_face import import_transformers
from perl_jax.interop import hf_checkpoint, hf_config, hf_config_out
from perl_jax.models.lora import LoraSpec
from tests.interop import rewriting, torch_side
from tests.interop.tiny import REFERENCES, load, logits

TOLERANCE = 2e-4
ANY = [name for name, kinds in hf_config.NESTED.items() if len(kinds) > 1]
# Fields of a text model that a wrapper could read elsewhere.
TEXTS = {
  "llama": {},
  "mistral": dict(sliding_window=5),
  "qwen2": {},
  "qwen3": dict(tie_word_embeddings=True),
  "gemma": {},
  "gemma2": torch_side.FAMILIES["gemma2"][1],
  "gemma3_text": torch_side.FAMILIES["gemma3"][1],
}
TIED = ("qwen3", "gemma", "gemma2", "gemma3_text")


def wrapper_class(kind):
  return type(import_transformers().AutoConfig.for_model(kind)).__name__


def write(directory, kind, text, **fields):
  """A checkpoint of random weights, and its class of `transformers`."""
  made = torch_side.config_of(
    wrapper_class(kind), TEXTS[text] | {"model_type": text}
  )
  for name, value in fields.items():
    setattr(made, name, value)
  model = torch_side.causal_class(made).from_config(made).eval()
  torch_side.randomise(model, seed=len(kind + text))
  model.save_pretrained(directory)
  return model


def require_logits(directory, model):
  tokens, lengths = torch_side.batch(3)
  found = load(directory)
  ours = logits(
    found.config,
    LoraSpec(),
    found.frozen,
    jnp.asarray(tokens),
    jnp.asarray(lengths),
  )
  theirs = torch_side.logits_of(model, tokens, lengths)
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
  return found.config


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "text"),
  [(kind, "llama") for kind in ANY] + [("llava", text) for text in TEXTS],
)
def test_logits_are_those_of_transformers(kind, text, tmp_path):
  """Gemma 3 is in test_parity; its language model is always of one family."""
  pytest.importorskip("torch", reason="compares with PyTorch")
  config = require_logits(tmp_path, write(tmp_path, kind, text))
  assert config.tied_head == (kind == "internvl" or text in TIED)


@pytest.mark.slow
def test_what_ties_the_head_is_the_config_of_the_whole(tmp_path):
  """Mistral 3 and InternVL tie by default, whatever text_config says."""
  pytest.importorskip("torch", reason="compares with PyTorch")
  made = write(tmp_path, "mistral3", "mistral", tie_word_embeddings=True)
  path = tmp_path / "config.json"
  fields = json.loads(path.read_text())
  assert not fields["text_config"]["tie_word_embeddings"]
  del fields["tie_word_embeddings"]
  path.write_text(json.dumps(fields))
  assert require_logits(tmp_path, made).tied_head


def copy_of(name, directory):
  for file in (REFERENCES / name / "checkpoint").iterdir():
    (directory / file.name).write_bytes(file.read_bytes())
  return directory


NEW_NAMES = (
  ("language_model.model.", "model.language_model."),
  ("language_model.lm_head.", "lm_head."),
  ("vision_tower.", "model.vision_tower."),
  ("multi_modal_projector.", "model.multi_modal_projector."),
)


@pytest.mark.parametrize("name", ["mistral3", "llava"])
def test_old_and_new_names(name, tmp_path, caplog):
  """Of releases up to 4.51 (5 writes them too), and of those between."""
  directory = copy_of(name, tmp_path)
  expected = load(directory)
  tensors = rewriting.tensors_of(directory)
  renamed = {}
  for tensor_name, tensor in tensors.items():
    (new,) = [
      new + tensor_name.removeprefix(old)
      for old, new in NEW_NAMES
      if tensor_name.startswith(old)
    ]
    renamed[new] = tensor
  renamed["model.image_newline"] = np.ones(4, np.float32)
  rewriting.write(directory, renamed, metadata={"format": "pt"})
  with caplog.at_level(logging.INFO, logger="absl"):
    found = load(directory)
  seen = sum("vision_tower" in n or "projector" in n for n in tensors)
  assert f"the {seen + 1} tensors of the vision tower" in caplog.text
  assert "does not have" not in caplog.text
  jax.tree.map(np.testing.assert_array_equal, found.frozen, expected.frozen)


def config_json(directory, **fields):
  path = pathlib.Path(directory) / "config.json"
  path.write_text(json.dumps(fields))
  return directory


@pytest.mark.parametrize("text", ["ministral3", "mixtral", "cohere2"])
@pytest.mark.parametrize("kind", ANY)
def test_language_models_of_other_families_are_refused(kind, text, tmp_path):
  config_json(tmp_path, model_type=kind, text_config={"model_type": text})
  with pytest.raises(ValueError, match=f"'{text}'; within '{kind}'") as caught:
    hf_config.load_hf_config(tmp_path)
  for family in hf_config.FAMILIES:
    assert family in str(caught.value)


def test_the_language_model_of_gemma_3_is_gemma_3(tmp_path):
  config_json(
    tmp_path, model_type="gemma3", text_config={"model_type": "llama"}
  )
  with pytest.raises(ValueError, match=r"only be gemma3_text\.$"):
    hf_config.load_hf_config(tmp_path)


def test_mistral_with_layer_types_is_refused_within_too(tmp_path):
  """By itself, as an export writes it, it would be read as Ministral."""
  text = {"model_type": "mistral", "layer_types": ["full_attention"]}
  config_json(tmp_path, model_type="mistral3", text_config=text)
  with pytest.raises(ValueError, match="reads as 'ministral'"):
    hf_config.load_hf_config(tmp_path)


def test_paligemma_is_refused(tmp_path):
  """Tokens of its prompt see each other."""
  config_json(
    tmp_path, model_type="paligemma", text_config={"model_type": "gemma"}
  )
  with pytest.raises(ValueError, match="'paligemma' is not supported"):
    hf_config.load_hf_config(tmp_path)


@pytest.mark.parametrize(
  ("kind", "text"), [("mistral3", "mistral"), ("llava", "llama")]
)
@pytest.mark.parametrize("given", [{}, {"text_config": {"hidden_size": 64}}])
def test_a_text_model_without_a_name_is_the_usual_one(
  kind, text, given, tmp_path
):
  config_json(tmp_path, model_type=kind, **given)
  hf = hf_config.load_hf_config(tmp_path)
  assert hf.text_config.model_type == text
  assert hf_config.model_config(hf, "x").width == (
    64 if given else hf.text_config.hidden_size
  )


def test_a_config_without_a_text_model_is_one_to_export_like(tmp_path):
  config_json(tmp_path, model_type="llava", eos_token_id=7)
  hf = hf_config.load_hf_config(tmp_path)
  config = hf_config.model_config(hf, "x")
  found = hf_config_out.released(tmp_path, config)
  assert found == {"model_type": "llama", "eos_token_id": 7}


@pytest.mark.parametrize("name", ["mistral3", "llava"])
def test_no_class_has_a_score_for_the_adapter_of_a_reward_model(name):
  directory = REFERENCES / name / "checkpoint"
  assert hf_checkpoint.takes_nested(directory, reward=False)
  text = f"'{name}', .* config.format to 'merged'"
  with pytest.raises(ValueError, match=text) as caught:
    hf_checkpoint.takes_nested(directory, reward=True)
  assert str(directory) in str(caught.value)


def test_gemma_3_and_language_models_have_one():
  for name, expected in {"gemma3_vision": True, "gemma3": False}.items():
    directory = REFERENCES / name / "checkpoint"
    assert hf_checkpoint.takes_nested(directory, reward=True) == expected


def test_transformers_has_no_such_class_either():
  """So that a release that brings one is noticed."""
  from transformers.models.auto import modeling_auto

  known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
  assert {k for k in hf_config.NESTED if k in known} == {
    *hf_config.NESTED_SCORED
  }


def test_the_references_have_towers():
  for name in ("mistral3", "llava"):
    path = REFERENCES / name / "checkpoint" / "model.safetensors"
    names = safetensors.numpy.load_file(path)
    assert any(re.match("vision_tower", n) for n in names)
