"""Checkpoints that cannot be used: one clear error each."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from perl_jax import sharding
from perl_jax.interop import hf_checkpoint, hf_weights
from perl_jax.interop.storage import Storage
from tests.interop.tiny import REFERENCES, load


@pytest.fixture
def llama(tmp_path):
  """A checkpoint to damage."""
  return shutil.copytree(REFERENCES / "llama2" / "checkpoint", tmp_path / "hf")


@pytest.fixture
def shards(llama):
  """The same in several files."""
  found = load(llama)
  (llama / hf_weights.SINGLE).unlink()
  files = hf_weights.save_base(
    llama,
    found.config,
    found.frozen,
    dtype="float32",
    shard_bytes=8_000,
  )
  return llama, files


def edit_tensors(directory, change, file=hf_weights.SINGLE):
  path = directory / file
  tensors = dict(safetensors.numpy.load_file(path))
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def edit_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory, *texts, error=ValueError):
  with pytest.raises(error) as caught:
    load(directory)
  for text in texts:
    assert text in str(caught.value)


def test_missing_shard(shards):
  directory, files = shards
  (directory / files[1]).unlink()
  refused(directory, str(directory / files[1]), error=FileNotFoundError)


def test_truncated_shard(shards):
  directory, files = shards
  content = (directory / files[1]).read_bytes()
  (directory / files[1]).write_bytes(content[:-100])
  refused(directory, str(directory / files[1]), "truncated")


def test_index_that_names_a_file_outside(shards):
  directory, _ = shards
  path = directory / hf_weights.INDEX
  weight_map = json.loads(path.read_text())["weight_map"]
  edit_json(path, weight_map=weight_map | {"model.norm.weight": "../x"})
  refused(directory, str(path), "model.norm.weight", "'../x'")


def test_a_tensor_that_only_the_index_has_is_missing(shards):
  """The shards count: of what the index lists, what is wanted has to be there.

  That a tensor which nobody wants is listed too is in `test_hf_files`.
  """
  directory, _ = shards
  path = directory / hf_weights.INDEX
  lost = json.loads(path.read_text())["weight_map"]["model.norm.weight"]
  edit_tensors(directory, lambda t: t.pop("model.norm.weight"), lost)
  refused(directory, "missing: model.norm.weight")


def test_broken_index(shards):
  directory, _ = shards
  (directory / hf_weights.INDEX).write_text("{")
  refused(directory, hf_weights.INDEX, "weight_map")


def test_tensors_that_do_not_fit_are_listed(llama):
  def change(tensors):
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.extra"] = np.zeros(2, np.float32)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])

  edit_tensors(llama, change)
  refused(
    llama,
    "missing: model.norm.weight",
    "extra: model.layers.0.mlp.extra",
    "model.layers.1.self_attn.k_proj.weight: (31, 16), expected (32, 16)",
  )


def test_wrong_dtype(llama):
  def change(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)

  edit_tensors(llama, change)
  refused(llama, "model.norm.weight: I8", "F32, F16, BF16")


def test_buffers_of_old_releases_are_no_weights(llama):
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  before = load(llama).frozen
  edit_tensors(llama, lambda t: t.update({name: np.ones(4, np.float32)}))
  after = load(llama).frozen
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_tied_head_may_be_saved_if_it_is_the_embedding(tmp_path):
  source = REFERENCES / "qwen2" / "checkpoint"
  directory = shutil.copytree(source, tmp_path / "qwen2")
  names = "model.embed_tokens.weight", "lm_head.weight"
  edit_tensors(directory, lambda t: t.update({names[1]: t[names[0]].copy()}))
  assert load(directory).config.tied_head


def test_no_weights(llama):
  (llama / hf_weights.SINGLE).unlink()
  refused(llama, hf_weights.SINGLE, error=FileNotFoundError)
  (llama / "pytorch_model.bin").write_bytes(b"")
  refused(llama, "pickle", error=FileNotFoundError)


@pytest.mark.parametrize(
  ("changes", "texts"),
  [
    ({"model_type": "gpt2"}, ("'gpt2'", "gemma2", "qwen3")),
    ({"hidden_act": "relu"}, ("hidden_act='relu'", "silu")),
    ({"quantization_config": {"quant_method": "gptq"}}, ("quantised",)),
    (
      {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4,
                           "factor": 4.0}},
      ("rope_type='dynamic'", "llama3"),
    ),
  ],
)  # fmt: skip
def test_configs_that_cannot_be_expressed(llama, changes, texts):
  edit_json(llama / "config.json", **changes)
  refused(llama, "config.json", *texts)


def test_config_that_is_missing_or_broken(llama):
  (llama / "config.json").write_text("{")
  refused(llama, "config.json")
  (llama / "config.json").unlink()
  refused(llama, "config.json", error=FileNotFoundError)


def test_windows_that_follow_no_rule(tmp_path):
  source = REFERENCES / "gemma2" / "checkpoint"
  directory = shutil.copytree(source, tmp_path / "gemma2")
  kinds = ["full_attention", "sliding_attention", "sliding_attention"]
  edit_json(directory / "config.json", layer_types=kinds)
  refused(directory, "layer_types", "each n-th")


def test_reward_model_with_two_labels(tmp_path):
  source = REFERENCES / "llama2" / "reward_checkpoint"
  directory = shutil.copytree(source, tmp_path / "reward")
  edit_tensors(
    directory, lambda t: t.update({"score.weight": np.ones((2, 16), "f4")})
  )
  refused(directory, "score.weight", "(2, 16)", "num_labels=1")


def put(tensors, name, value):
  tensors[name] = tensors[name].copy()
  tensors[name].flat[-1] = value


KERNEL = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  "name",
  [KERNEL, "model.layers.0.input_layernorm.weight", "model.norm.weight",
   "model.embed_tokens.weight", "lm_head.weight"],
)  # fmt: skip
def test_numbers_that_are_not_finite(llama, name, value):
  edit_tensors(llama, lambda t: put(t, name, value))
  place = f"{llama / hf_weights.SINGLE}: {name} has numbers"
  refused(llama, place, "NaN", "diverged")


def test_of_shards_the_file_is_named(shards):
  directory, _ = shards
  index = json.loads((directory / hf_weights.INDEX).read_text())
  file = index["weight_map"][KERNEL]
  edit_tensors(directory, lambda t: put(t, KERNEL, np.nan), file)
  refused(directory, f"{directory / file}: {KERNEL} has numbers")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "nf4"])
def test_they_are_found_on_a_mesh_and_before_rounding(llama, dtype):
  """One device of eight has it; rounded to int8 or nf4 it would be a number."""
  edit_tensors(llama, lambda t: put(t, KERNEL, np.nan))
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  with pytest.raises(ValueError, match=f": {re.escape(KERNEL)} has numbers"):
    hf_checkpoint.load(llama, mesh=mesh, storage=Storage(dtype))


def test_numbers_that_float32_cannot_hold(llama):
  def change(tensors):
    tensors[KERNEL] = tensors[KERNEL].astype("f8")
    put(tensors, KERNEL, 1e300)

  edit_tensors(llama, change)
  refused(llama, KERNEL, "more than float32 can hold")


def test_the_largest_numbers_are_finite(llama):
  largest = np.finfo("f4").max
  edit_tensors(llama, lambda t: put(t, KERNEL, largest))
  assert np.max(load(llama).frozen["layers"]["mlp"]["down"]["kernel"]) == (
    largest
  )


def test_what_is_not_used_may_be_anything(llama):
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  edit_tensors(llama, lambda t: t.update({name: np.full(4, np.nan, "f4")}))
  load(llama)
