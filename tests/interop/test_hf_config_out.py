"""An exported config.json says the same to old and new readers."""

import json
import logging

import numpy as np
import pytest

from perl_jax import params
from perl_jax.data.text.hugging_face import import_transformers
from perl_jax.interop import hf_checkpoint, hf_config, hf_export, leaves
from perl_jax.models import presets
from tests.interop import older_reader
from tests.interop.test_hf_fields import DROPPED, change

STOPS = hf_export.Stops((2, 1), bos_id=None, pad_id=0)
LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=500_000.0,
  rope_factor=32.0,
  rope_original_max_len=64,
)
# Name -> (preset, fields).
MODELS = {
  "llama2": ("llama_tiny", {}),
  "llama3.2": ("llama_tiny", LLAMA3 | {"tied_head": True}),
  "biases": ("llama_tiny", dict(qkv_bias=True, out_bias=True, mlp_bias=True)),
  "linear": ("llama_tiny", dict(rope_type="linear", rope_factor=4.0)),
  "mistral": ("llama_tiny", dict(sliding_window=7, rope_theta=1e6)),
  "qwen2": ("qwen2_tiny", dict(rope_theta=1e6)),
  "qwen2_windows": ("qwen2_tiny", dict(sliding_window=7, global_every=0)),
  "qwen3": ("qwen3_tiny", dict(rope_theta=1e6)),
  "gemma": ("gemma_tiny", {}),
  "gemma2": ("gemma2_tiny", {}),
  "gemma3": (
    "gemma3_tiny",
    dict(
      num_layers=7, global_every=6, rope_type="linear", rope_factor=8.0,
      rope_local_theta=77.0,
    ),
  ),
  "gemma3_every_2": ("gemma3_tiny", dict(global_every=2)),
  "gemma3_all_windows": ("gemma3_tiny", dict(global_every=0)),
}  # fmt: skip


def written(directory, config, *, dtype="bfloat16", reward=False, like=None):
  """The config.json of an export."""
  shapes = leaves.base_shapes(config)
  zeros = {path: np.zeros(shape, "f4") for path, shape in shapes.items()}
  head = None
  if reward:
    head = {"head": {"kernel": [0.0] * config.width, "bias": 0.0}}
  hf_export.save_model(
    directory,
    config,
    params.unflatten(zeros),
    STOPS,
    dtype=dtype,
    shard_bytes=10**9,
    head=head,
    like=like,
  )
  return json.loads((directory / "config.json").read_text())


def described(config, dtype):
  """What `older_reader.read` should say."""
  window = config.sliding_window
  scaling = (None, None, None)
  if config.rope_type == "linear":
    scaling = (config.rope_factor, None, None)
  if config.rope_type == "llama3":
    scaling = (
      config.rope_factor,
      config.rope_low_freq_factor,
      config.rope_high_freq_factor,
    )
  found = {
    "vocab_size": config.vocab_size,
    "layers": config.num_layers,
    "heads": (config.num_heads, config.num_kv_heads, config.head_dim),
    "widths": (config.width, config.mlp_width),
    "max_len": config.max_len,
    "eps": config.norm_eps,
    "tied": config.tied_head,
    "theta": config.rope_theta,
    "rope_type": config.rope_type,
    "scaling": scaling,
    "windows": [window if w else None for w in config.layer_is_windowed],
    "dtype": dtype,
    "biases": (config.qkv_bias, config.mlp_bias),
  }
  if config.post_norms:
    scale = config.query_scale or config.head_dim**-0.5
    found["scalar"] = pytest.approx(scale**-2)
    found["softcaps"] = (config.attn_softcap, config.final_softcap)
  if config.post_norms and config.qk_norm:
    found["local_theta"] = config.rope_local_theta
  return found


@pytest.fixture
def warnings_of_transformers(caplog):
  """What transformers logs from now on."""
  transformers = import_transformers()
  transformers.logging.enable_propagation()
  with caplog.at_level(logging.WARNING, logger="transformers"):
    yield caplog
  transformers.logging.disable_propagation()


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_both_spellings(name, reward, tmp_path, warnings_of_transformers):
  preset, fields = MODELS[name]
  config = presets.preset(preset, vocab_size=64, max_len=128, **fields)
  found = written(tmp_path, config, reward=reward)
  assert older_reader.read(found) == described(config, "bfloat16")
  # And to transformers of today, of the newer fields alone and of all.
  read = hf_config.load_hf_config(tmp_path)
  assert warnings_of_transformers.text == ""
  newer = hf_config.model_config(read, "both")
  assert newer.to_dict() == pytest.approx(
    config.to_dict() | {"query_scale": newer.query_scale}
  )
  assert str(read.dtype).endswith("bfloat16")
  older = ("rope_theta", "rope_scaling", "torch_dtype", "rope_local_base_freq")
  change(tmp_path, **dict.fromkeys(older, DROPPED))
  read = hf_config.load_hf_config(tmp_path)
  assert hf_config.model_config(read, "new") == newer
  change(tmp_path, **found)
  change(tmp_path, rope_parameters=DROPPED, dtype=DROPPED)
  read = hf_config.load_hf_config(tmp_path)
  assert hf_config.model_config(read, "old") == newer
  assert str(read.dtype).endswith("bfloat16")


def test_the_older_reader_sees_what_is_missing(tmp_path):
  """The reader of this test takes the default, as those that it stands for."""
  config = presets.preset("qwen2_tiny", vocab_size=64, rope_theta=1e6)
  found = written(tmp_path, config)
  del found["rope_theta"], found["torch_dtype"]
  read = older_reader.read(found)
  assert read["theta"] == 10_000.0 and read["dtype"] == "float32"


SMALL = dict(
  hidden_size=32,
  intermediate_size=64,
  num_attention_heads=4,
  num_key_value_heads=2,
  num_hidden_layers=2,
  vocab_size=64,
)
# Fields of config.json beside those sizes, as they were released.
RELEASED = {
  "Llama-3.2-1B-Instruct": {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [1, 2], "head_dim": 8, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {
      "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True,
  },
  "SmolLM2-135M-Instruct": {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "initializer_range": 0.041666666666666664,
    "is_llama_config": True, "max_position_embeddings": 8192,
    "mlp_bias": False, "model_type": "llama", "pad_token_id": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
    "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "use_cache": True,
  },
  "Mistral-7B-Instruct-v0.3": {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 32768,
    "model_type": "mistral", "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True,
  },
  "Qwen2.5-0.5B-Instruct": {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 32768,
    "max_window_layers": 21, "model_type": "qwen2", "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False,
  },
  "gemma-2b-it": {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1,
    "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02, "max_position_embeddings": 8192,
    "model_type": "gemma", "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "use_cache": True,
  },
  "gemma-2-2b-it": {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 2],
    "final_logit_softcapping": 30.0, "head_dim": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02,
    "max_position_embeddings": 8192, "model_type": "gemma2",
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096,
    "torch_dtype": "bfloat16", "use_cache": True,
  },
  "gemma-3-1b-it": {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": None,
    "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": [1, 2], "final_logit_softcapping": None, "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02,
    "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_hidden_layers": 7, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "use_cache": True,
  },
}  # fmt: skip
# What our stop tokens and padding, or the dtype, may change.
OURS = ("pad_token_id", "torch_dtype", "rope_scaling")
GENERATION = {"bos_token_id": 9, "do_sample": True, "top_p": 0.8, "top_k": 20}


@pytest.fixture(params=RELEASED)
def release(request, tmp_path):
  """(directory with the files that a model came with, fields of its config)."""
  directory = tmp_path / "released"
  directory.mkdir()
  fields = SMALL | RELEASED[request.param]
  (directory / "config.json").write_text(json.dumps(fields))
  (directory / "generation_config.json").write_text(
    json.dumps(GENERATION | {"eos_token_id": 1})
  )
  return directory, fields


def test_nothing_of_a_release_is_lost(release, tmp_path):
  directory, fields = release
  config = hf_checkpoint.model_config(directory)
  found = written(tmp_path, config, dtype="float32", like=directory)
  kept = {name: found.get(name) for name in fields if name not in OURS}
  assert kept == {name: v for name, v in fields.items() if name not in OURS}
  scaling = fields.get("rope_scaling") or {}
  assert scaling.items() <= (found["rope_scaling"] or {}).items()
  assert found["torch_dtype"] == found["dtype"] == "float32"
  assert older_reader.read(found) == older_reader.read(
    fields | {"torch_dtype": "float32"}
  )
  generation = json.loads((tmp_path / "generation_config.json").read_text())
  ids = {"pad_token_id": 0, "bos_token_id": fields["bos_token_id"]}
  assert generation == GENERATION | ids | {"eos_token_id": [2, 1]}
  eos = found["eos_token_id"]
  assert {*(eos if isinstance(eos, list) else [eos])} <= {2, 1}


def test_a_release_whose_end_is_none_of_ours_takes_ours(release, tmp_path):
  directory, _ = release
  change(directory, eos_token_id=50)
  config = hf_checkpoint.model_config(directory)
  assert written(tmp_path, config, like=directory)["eos_token_id"] == 2


def test_files_of_another_model_are_not_repeated(release, tmp_path):
  """A tokenizer may come from there."""
  directory, _ = release
  config = hf_checkpoint.model_config(directory)
  change(directory, rms_norm_eps=0.5)
  found = written(tmp_path, config, like=directory)
  generation = json.loads((tmp_path / "generation_config.json").read_text())
  assert found["bos_token_id"] is None and "top_k" not in generation
