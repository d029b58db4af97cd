"""Files as others save them: read as `from_pretrained` of transformers does.

Each case changes a reference checkpoint in a way that does not change the
model. Here it has to give the same leaves; where PyTorch is installed,
`transformers` has to give the same logits from it too.
"""

import json
import logging

import jax
import numpy as np
import pytest

from perl_jax.interop import hf_checkpoint, hf_files
from perl_jax.models.lora import LoraSpec
from tests.archives import read_arrays
from tests.interop.rewriting import (
  EMBEDDING,
  HEAD,
  add,
  cast,
  index_lists_more,
  index_names_another_shard,
  named_in_config,
  rename,
  shards,
  shards_in_a_folder,
  single_beside_shards,
  snapshot,
  tensors_of,
  write,
)
from tests.interop.tiny import REFERENCES, batch, load, logits
from tests.interop.torch_side import judge_logits

INV_FREQ = {"layers__0__self_attn__rotary_emb__inv_freq": np.ones(4, "f4")}
UNUSED = {
  "model__layers__0__self_attn__masked_bias": np.zeros(1, "f4"),
  "v_head__summary__weight": np.zeros((1, 16), "f4"),
}
# Name -> (family of the reference, change). "llama3" is tied, "llama2" is not.
CASES = {
  "float64": ("llama2", cast(np.float64)),
  "no_metadata": ("qwen2", rename(lambda name: name)),
  "base_by_itself": ("llama3", rename(lambda n: n.removeprefix("model."))),
  "head_in_the_base": (
    "llama2",
    rename(lambda n: f"model.{n}" if n == HEAD else n),
  ),
  "old_buffers": ("llama2", add(**INV_FREQ)),
  "unused": ("qwen3", add(**UNUSED)),
  "tied_head_alone": (
    "llama3",
    rename(lambda n: HEAD if n == EMBEDDING else n),
  ),
  "tied_head_alone_in_shards": (
    "gemma2",
    lambda d: (
      rename(lambda n: HEAD if n == EMBEDDING else n)(d),
      shards(d, listed={EMBEDDING: "model-0.safetensors"}),
    ),
  ),
  "index_lists_more": ("llama3", index_lists_more),
  "index_names_another_shard": ("gemma", index_names_another_shard),
  "shards_in_a_folder": ("mistral", shards_in_a_folder),
  "single_beside_shards": ("llama2", single_beside_shards),
  "named_in_config": ("qwen2", named_in_config),
  "snapshot": ("gemma3", snapshot),
}


@pytest.mark.parametrize("case", CASES)
def test_files_as_others_save_them(case, copy):
  family, change = CASES[case]
  directory = copy(family)
  expected = load(directory)
  change(directory)
  found = load(directory)
  assert found.config == expected.config
  jax.tree.map(np.testing.assert_array_equal, found.frozen, expected.frozen)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_them_to_the_same_logits(case, copy):
  family, change = CASES[case]
  directory = copy(family)
  change(directory)
  expected = read_arrays(REFERENCES / family / "expected.npz")
  found = judge_logits(directory, expected)
  np.testing.assert_allclose(found, expected["logits"], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_a_head_that_differs_from_the_embedding_is_not_tied(copy, caplog):
  """Whatever config.json says; transformers warns and does the same."""
  directory = copy("qwen2")
  head = tensors_of(directory)[EMBEDDING][::-1].copy()
  add(lm_head__weight=head)(directory)
  with caplog.at_level(logging.WARNING):
    found = load(directory)
  assert "tie_word_embeddings" in caplog.text and HEAD in caplog.text
  assert not found.config.tied_head
  expected = read_arrays(REFERENCES / "qwen2" / "expected.npz")
  ours = logits(found.config, LoraSpec(), found.frozen, *batch(expected))
  theirs = judge_logits(directory, expected)
  assert np.abs(theirs - expected["logits"]).max() > 1
  np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)


def test_what_is_not_used_is_said(copy, caplog):
  directory = copy("llama2")
  add(**UNUSED, **INV_FREQ)(directory)
  with caplog.at_level(logging.WARNING):
    load(directory)
  assert "v_head.summary.weight" in caplog.text
  assert "masked_bias" in caplog.text and "inv_freq" not in caplog.text


@pytest.mark.parametrize(
  "name",
  [
    "q_proj.qweight", "q_proj.scales", "q_proj.weight_scale_inv",
    "q_proj.weight.absmax", "q_proj.weight.quant_state.bitsandbytes__nf4",
    "q_proj.SCB", "q_proj.weight_packed", "q_proj.input_scale",
  ],
)  # fmt: skip
def test_what_quantised_weights_leave_is_refused(copy, name):
  """A scale that is not used would give another model, silently."""
  directory = copy("llama2")
  name = f"model.layers.0.self_attn.{name}"
  write(directory, tensors_of(directory) | {name: np.ones(1, "f4")})
  with pytest.raises(ValueError, match="quantised weights") as caught:
    load(directory)
  assert name in str(caught.value)


def test_two_spellings_of_one_tensor_are_refused(copy):
  directory = copy("llama2")
  write(directory, tensors_of(directory) | {"norm.weight": np.ones(16, "f4")})
  with pytest.raises(ValueError, match="names of one tensor") as caught:
    load(directory)
  assert "'norm.weight'" in str(caught.value)


@pytest.mark.parametrize(
  ("file", "message"),
  [("/etc/x.safetensors", "in the directory"), ("../x", "in the directory")],
)
def test_files_outside_the_directory_are_refused(copy, file, message):
  directory = copy("llama2")
  named_in_config(directory)
  path = directory / "config.json"
  fields = json.loads(path.read_text()) | {"transformers_weights": file}
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=message) as caught:
    load(directory)
  assert "transformers_weights" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_of_8_bits(copy, dtype):
  """Plain ones, which transformers casts; numpy has no such dtype."""
  torch = pytest.importorskip("torch", reason="writes floats of 8 bits")
  import safetensors.torch

  directory = copy("llama2")
  tensors = {
    name: torch.from_numpy(value).to(getattr(torch, dtype))
    for name, value in tensors_of(directory).items()
  }
  safetensors.torch.save_file(tensors, directory / hf_files.SINGLE)
  expected = read_arrays(REFERENCES / "llama2" / "expected.npz")
  found = load(directory)
  ours = logits(found.config, LoraSpec(), found.frozen, *batch(expected))
  theirs = judge_logits(directory, expected)
  assert np.abs(theirs - expected["logits"]).max() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
  ("prefix", "advice"),
  [
    ("_orig_mod.", "Save `model._orig_mod` with save_pretrained"),
    ("module.", "Save `model.module` with save_pretrained"),
    ("base_model.model.", "Save `model.merge_and_unload()`"),
  ],
)
def test_names_of_a_wrapped_model_say_what_to_save(copy, prefix, advice):
  """transformers finds none of them, and draws the weights anew."""
  directory = copy("llama2")
  rename(lambda name: prefix + name)(directory)
  with pytest.raises(ValueError, match=r"missing: lm_head\.weight") as caught:
    load(directory)
  assert advice in str(caught.value)


NAMES = (
  "language_model.model.", "model.language_model.", "language_model.",
  "model.language_model.model.", "language_model.model.model.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", NAMES)
def test_names_of_a_language_model_in_a_larger_one(copy, prefix, caplog):
  """As different releases of transformers have written them."""
  directory = copy("gemma3_vision")
  expected = load(directory)
  old = "language_model.model."
  rename(lambda n: n.replace(old, prefix) if n.startswith(old) else n)(
    directory
  )
  with caplog.at_level(logging.INFO, logger="absl"):
    found = load(directory)
  assert "vision tower" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, found.frozen, expected.frozen)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", NAMES)
def test_transformers_reads_these_names_too(copy, prefix):
  directory = copy("gemma3_vision")
  old = "language_model.model."
  rename(lambda n: n.replace(old, prefix) if n.startswith(old) else n)(
    directory
  )
  expected = read_arrays(REFERENCES / "gemma3_vision" / "expected.npz")
  found = judge_logits(directory, expected)
  np.testing.assert_allclose(found, expected["logits"], atol=2e-4, rtol=0)


def test_plain_names_are_none_of_a_larger_model(copy):
  """transformers would draw its weights anew."""
  directory = copy("gemma3_vision")
  rename(lambda n: n.removeprefix("language_model."))(directory)
  with pytest.raises(ValueError, match=r"missing: model\.embed_tokens\.weight"):
    load(directory)


def test_a_config_without_a_model_type_is_one_of_a_checkpoint(copy):
  """So that the error is about model_type, not about a workdir."""
  directory = copy("llama2")
  path = directory / "config.json"
  fields = json.loads(path.read_text())
  kind = fields.pop("model_type")
  path.write_text(json.dumps(fields))
  assert hf_checkpoint.is_checkpoint(directory)
  with pytest.raises(ValueError, match="has no model_type"):
    load(directory)
  path.write_text(json.dumps(fields | {"model_type": kind}))
  load(directory)
