"""PEFT adapters: what their fields and tensors mean, what is refused by name.

`test_peft_kinds` compares with PEFT itself.
"""

import logging
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from perl_jax import params as params_lib
from perl_jax.interop import hf_config, peft
from tests.interop.test_damaged import edit_json
from tests.interop.tiny import REFERENCES


@pytest.fixture
def adapter(tmp_path):
  return shutil.copytree(REFERENCES / "llama2" / "adapter", tmp_path / "peft")


def model():
  hf = hf_config.load_hf_config(REFERENCES / "llama2" / "checkpoint")
  return hf_config.model_config(hf, "llama2")


def edit_adapter(directory, change):
  """Changes the tensors of an adapter; `change` returns them."""
  path = directory / peft.WEIGHTS
  tensors = change(dict(safetensors.numpy.load_file(path)))
  safetensors.numpy.save_file(tensors, path)


def same(first, second):
  """Whether two roles have the same adapter and head, to the bit."""
  first, second = map(params_lib.flatten, (first.trainable, second.trainable))
  return first.keys() == second.keys() and all(
    np.array_equal(first[path], second[path]) for path in first
  )


def adapter_refused(directory, *texts, config=None, error=ValueError):
  with pytest.raises(error) as caught:
    peft.load_adapter(directory, config or model())
  for text in texts:
    assert text in str(caught.value)


def test_adapter_for_another_base(adapter):
  hf = hf_config.load_hf_config(REFERENCES / "qwen2" / "checkpoint")
  other = hf_config.model_config(hf, "qwen2")
  adapter_refused(adapter, "another base", "(16, 2)", config=other)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("peft_type", "IA3"),
    ("use_dora", True),
    ("bias", "all"),
    ("layers_to_transform", [0]),
    ("modules_to_save", ["lm_head"]),
  ],
)
def test_kinds_of_adapter_that_are_refused_by_name(adapter, field, value):
  edit_json(adapter / peft.CONFIG, **{field: value})
  adapter_refused(adapter, f"{field}={value!r}")


def test_adapter_on_a_module_that_is_no_projection(adapter):
  path = adapter / peft.WEIGHTS
  tensors = dict(safetensors.numpy.load_file(path))
  name = "base_model.model.model.embed_tokens.lora_A.weight"
  tensors[name] = np.zeros((2, 96), np.float32)
  safetensors.numpy.save_file(tensors, path)
  adapter_refused(adapter, name, "Merge the adapter")


def test_adapter_that_lacks_a_layer(adapter):
  path = adapter / peft.WEIGHTS
  tensors = dict(safetensors.numpy.load_file(path))
  tensors = {k: v for k, v in tensors.items() if ".layers.1." not in k}
  safetensors.numpy.save_file(tensors, path)
  adapter_refused(adapter, "layers [0, 2]", "layers 0 to 2")


def test_truncated_adapter(adapter):
  path = adapter / peft.WEIGHTS
  path.write_bytes(path.read_bytes()[:-10])
  adapter_refused(adapter, str(path), "truncated")
  path.unlink()
  adapter_refused(adapter, str(path), error=FileNotFoundError)


def test_patterns_of_rank_and_alpha_are_honoured(adapter):
  """Another alpha goes into B; a lower rank is filled up with zeros."""
  plain = peft.load_adapter(adapter, model())
  edit_json(
    adapter / peft.CONFIG,
    alpha_pattern={"layers.1.self_attn.q_proj": 12},
    rank_pattern={"k_proj": 1},
  )
  path = adapter / peft.WEIGHTS
  tensors = dict(safetensors.numpy.load_file(path))
  for name in list(tensors):
    if "k_proj.lora_A" in name:
      tensors[name] = np.ascontiguousarray(tensors[name][:1])
    if "k_proj.lora_B" in name:
      tensors[name] = np.ascontiguousarray(tensors[name][:, :1])
  safetensors.numpy.save_file(tensors, path)
  found = peft.load_adapter(adapter, model())
  assert found.lora == plain.lora

  def leaf(adapter, name):
    module, matrix = name.split("/")
    return adapter.adapter["layers"]["attention"][module][matrix]

  np.testing.assert_array_equal(
    leaf(found, "q/lora_b"),
    leaf(plain, "q/lora_b") * np.array([1, 2, 1], np.float32)[:, None, None],
  )
  # alpha / 1 instead of alpha / 2: twice the scale of the spec.
  np.testing.assert_array_equal(
    leaf(found, "k/lora_b")[:, 0], 2 * leaf(plain, "k/lora_b")[:, 0]
  )
  assert not np.any(leaf(found, "k/lora_b")[:, 1])
  np.testing.assert_array_equal(
    leaf(found, "v/lora_b"), leaf(plain, "v/lora_b")
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"target_modules": ["q_proj", "k_proj"]},
    {"target_modules": None},
    {"exclude_modules": ["o_proj"]},
    {"exclude_modules": r".*layers\.1\..*"},
    {"layers_to_transform": [0, 1], "layers_pattern": ["layers"]},
  ],
)
def test_tensors_of_modules_that_the_config_does_not_name(adapter, changes):
  """PEFT drops them without an error, and so would give another model."""
  edit_json(adapter / peft.CONFIG, **changes)
  for field, value in changes.items():
    adapter_refused(adapter, f"{field}={value!r}", "has adapters in layers")


def test_layers_without_an_adapter_get_zeros(adapter):
  plain = params_lib.flatten(peft.load_adapter(adapter, model()).trainable)
  edit_json(adapter / peft.CONFIG, layers_to_transform=[2, 0])
  edit_adapter(
    adapter, lambda t: {k: v for k, v in t.items() if ".layers.1." not in k}
  )
  found = params_lib.flatten(peft.load_adapter(adapter, model()).trainable)
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf[[0, 2]], plain[path][[0, 2]])
    assert not np.any(leaf[1])


def test_a_rank_that_is_not_the_configs(adapter):
  edit_json(adapter / peft.CONFIG, r=4)
  adapter_refused(adapter, "(2, 32)", "(4, 32)", "rank_pattern")


@pytest.mark.parametrize(
  "root",
  [
    "model.layers.", "base_model.model.layers.",
    "base_model.model.model.language_model.layers.",
    "base_model.model.language_model.model.layers.",
  ],
)  # fmt: skip
def test_the_same_layers_by_other_names(adapter, root):
  plain = peft.load_adapter(adapter, model())

  def rename(tensors, root=root):
    before = "base_model.model.model.layers."
    return {k.replace(before, root): v for k, v in tensors.items()}

  edit_adapter(adapter, rename)
  assert same(peft.load_adapter(adapter, model()), plain)
  one = f"{root}1."
  edit_adapter(
    adapter,
    lambda t: {
      k.replace(one, "language_model.layers.1."): v for k, v in t.items()
    },
  )
  adapter_refused(adapter, "more than one way", "keep one")


def test_a_matrix_under_two_names(adapter):
  name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
  edit_adapter(
    adapter, lambda t: t | {f"{name}.default.weight": t[f"{name}.weight"]}
  )
  adapter_refused(adapter, "under two names", name)


def test_the_vision_tower_is_left_out_and_the_log_says_so(adapter, caplog):
  plain = peft.load_adapter(adapter, model())
  name = "base_model.model.model.vision_tower.encoder.layers.0.mlp.fc1"
  edit_adapter(
    adapter,
    lambda t: t | {f"{name}.lora_A.weight": np.ones((2, 4), np.float32)},
  )
  with caplog.at_level(logging.INFO, logger="absl"):
    assert same(peft.load_adapter(adapter, model()), plain)
  assert "1 tensors of the vision tower are left out" in caplog.text


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_that_adapters_are_saved_in(adapter, dtype):
  plain = params_lib.flatten(peft.load_adapter(adapter, model()).trainable)
  edit_adapter(adapter, lambda t: {k: v.astype(dtype) for k, v in t.items()})
  found = params_lib.flatten(peft.load_adapter(adapter, model()).trainable)
  for path, leaf in found.items():
    assert leaf.dtype == np.float32
    rounded = plain[path].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(leaf, rounded)


@pytest.mark.parametrize(
  ("matrix", "text"),
  [
    (np.full((2, 16), np.nan, np.float32), "finite"),
    (np.zeros((0,), np.float32), "saved in parts"),
    (np.zeros((2, 16), np.int8), "int8"),
  ],
)
def test_matrices_that_are_none(adapter, matrix, text):
  name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
  edit_adapter(adapter, lambda t: t | {name: matrix})
  adapter_refused(adapter, str(adapter / peft.WEIGHTS), name, text)


def test_a_pointer_of_git_lfs_is_no_damaged_file(adapter):
  text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
  (adapter / peft.WEIGHTS).write_text(text)
  adapter_refused(adapter, str(adapter / peft.WEIGHTS), "git lfs pull")


def test_a_dtype_that_numpy_does_not_have(adapter):
  dtype = ml_dtypes.float8_e4m3fn
  edit_adapter(adapter, lambda t: {k: v.astype(dtype) for k, v in t.items()})
  adapter_refused(adapter, str(adapter / peft.WEIGHTS), "float8", "bfloat16")


def test_a_value_head_beside_a_policy_is_left_out(adapter, caplog):
  """Which a whole checkpoint may have too."""
  plain = peft.load_adapter(adapter, model())
  edit_adapter(adapter, lambda t: t | {"v_head.summary.bias": np.ones(1)})
  with caplog.at_level(logging.WARNING, logger="absl"):
    assert same(peft.load_adapter(adapter, model()), plain)
  assert "v_head.summary.bias is left out" in caplog.text
  edit_json(adapter / peft.CONFIG, task_type="SEQ_CLS")
  adapter_refused(adapter, "v_head.summary.bias")


def test_half_a_pair_is_refused(adapter):
  name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
  edit_adapter(adapter, lambda t: {k: v for k, v in t.items() if k != name})
  adapter_refused(adapter, "needs lora_A and lora_B", "q_proj")


# Reward adapters.


@pytest.fixture
def reward(tmp_path):
  source = REFERENCES / "llama2" / "reward_adapter"
  return shutil.copytree(source, tmp_path / "reward")


SCORE = "base_model.model.score"


def move_head(directory, *names):
  """Saves the trained head under other names; those of an untrained one too."""

  def move(tensors):
    head = tensors.pop(f"{SCORE}.weight")
    untrained = {n: head * 0 for n in names if "original_module" in n}
    return tensors | dict.fromkeys(names, head) | untrained

  edit_adapter(directory, move)


@pytest.mark.parametrize(
  "name",
  ["modules_to_save.weight", "modules_to_save.default.weight"],
)
def test_the_names_of_a_head_that_was_trained(reward, name):
  plain = peft.load_adapter(reward, model())
  trained, untrained = f"{SCORE}.{name}", f"{SCORE}.original_module.weight"
  move_head(reward, trained, untrained)
  assert same(peft.load_adapter(reward, model()), plain)


def test_a_head_that_is_not_finite_is_refused(reward):
  edit_adapter(
    reward,
    lambda t: {k: v * (np.nan if SCORE in k else 1) for k, v in t.items()},
  )
  adapter_refused(reward, str(reward / peft.WEIGHTS), SCORE, "not finite")


def test_a_reward_adapter_without_its_head_is_refused(reward):
  move_head(reward, f"{SCORE}.original_module.weight")
  adapter_refused(reward, "no score.weight", "task_type='SEQ_CLS'")
  edit_json(reward / peft.CONFIG, task_type=None)
  adapter_refused(reward, "one trained score.weight", "original_module")
