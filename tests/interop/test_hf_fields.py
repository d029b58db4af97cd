"""Each field of config.json is honoured, known to say nothing, or refused."""

import json
import math

import numpy as np
import pytest

from perl_jax.interop import hf_config
from perl_jax.interop.hf_config import FAMILIES, NESTED, model_config
from perl_jax.models.lora import LoraSpec
from tests.archives import read_arrays
from tests.interop.tiny import REFERENCES, batch, load, logits
from tests.interop.torch_side import judge_logits

DROPPED = object()


def change(directory, **fields):
  """Changes fields of config.json; `DROPPED` removes one."""
  path = directory / "config.json"
  found = json.loads(path.read_text()) | fields
  kept = {name: v for name, v in found.items() if v is not DROPPED}
  path.write_text(json.dumps(kept))


def read(directory):
  return model_config(hf_config.load_hf_config(directory), str(directory))


# Family and fields that say nothing about its logits, as transformers has it.
IGNORED = [
  ("llama2", {"sliding_window": 4, "layer_types": ["full_attention"] * 3}),
  ("llama2", {"hidden_activation": "gelu", "query_pre_attn_scalar": 3}),
  ("llama2", {"pretraining_tp": 2, "attention_dropout": 0.5}),
  ("llama2", {"final_logit_softcapping": 3.0, "use_cache": False}),
  ("llama2", {"temperature": 0.1, "max_length": 4, "architectures": None}),
  ("llama2", {"auto_map": {"AutoConfig": "configuration_x.X"}}),
  ("llama2", {"use_bidirectional_attention": True, "qk_layernorm": True}),
  ("llama3", {"rope_theta": 5.0, "torch_dtype": "float16"}),
  ("mistral", {"attention_bias": True, "use_sliding_window": False}),
  ("qwen2", {"sliding_window": 4, "use_sliding_window": False}),
  ("qwen2", {"attention_bias": False, "max_window_layers": 1}),
  ("gemma", {"sliding_window": 4, "hidden_activation": "silu"}),
  ("gemma2", {"hidden_act": "silu", "sliding_window_pattern": 5}),
  ("gemma3", {"attn_logit_softcapping": 2.0, "rope_local_base_freq": 3.0}),
]  # fmt: skip
# As models of long contexts are released, DeepSeek's Qwen3 among them; of its
# fields transformers reads all but the last.
YARN = {
  "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
  "attn_factor": 0.8782488562869419,
}  # fmt: skip
YARN_READ = {
  "rope_type": "yarn", "rope_factor": 4.0, "rope_high_freq_factor": 32.0,
  "rope_original_max_len": 32,
  "rope_attention_factor": 0.1 * math.log(4) + 1,
}  # fmt: skip
# Family, fields, and what the model then is.
HONOURED = [
  ("qwen3", {"rope_scaling": YARN}, YARN_READ),
  (
    "llama2",
    {"rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 2, "truncate": False,
                             "mscale": 0.7, "mscale_all_dim": 0.4}},
    YARN_READ
    | {"rope_low_freq_factor": 2.0, "rope_high_freq_factor": 8.0,
       "rope_truncate": False,
       "rope_attention_factor":
         (0.07 * math.log(4) + 1) / (0.04 * math.log(4) + 1)},
  ),
  (
    "qwen2",
    {"rope_scaling": YARN | {"attention_factor": 1.5}},
    YARN_READ | {"rope_attention_factor": 1.5},
  ),
  ("llama2", {"rope_parameters": DROPPED}, {"rope_theta": 10_000.0}),
  (
    "llama2",
    {"rope_parameters": DROPPED, "rope_theta": 777},
    {"rope_theta": 777.0},
  ),
  (
    "llama2",
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 9e3},
    {"rope_type": "linear", "rope_factor": 4.0, "rope_theta": 9e3},
  ),
  ("llama2", {"rms_norm_eps": 0.5}, {"norm_eps": 0.5}),
  ("llama2", {"hidden_act": "gelu_new"}, {"activation": "gelu_tanh"}),
  ("llama2", {"num_key_value_heads": DROPPED}, {}),
  ("mistral", {"sliding_window": None}, {"sliding_window": None}),
  ("mistral", {"sliding_window": 3}, {"sliding_window": 3}),
  (
    "qwen2",
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0,
     "layer_types": DROPPED},
    {"sliding_window": 3},
  ),
  ("gemma", {"hidden_act": "gelu"}, {}),
  ("gemma", {"hidden_act": "silu"}, {"activation": "silu"}),
  ("gemma2", {"query_pre_attn_scalar": 16}, {"query_scale": 0.25}),
  (
    "gemma2",
    {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    {"attn_softcap": None, "final_softcap": None},
  ),
  ("gemma3", {"final_logit_softcapping": 2.0}, {"final_softcap": 2.0}),
  (
    "gemma3",
    {"layer_types": DROPPED, "sliding_window_pattern": 2},
    {"global_every": 2},
  ),
  (
    "gemma3",
    {"rope_parameters": DROPPED, "rope_theta": 5e5, "rope_local_base_freq": 77,
     "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    {"rope_theta": 5e5, "rope_local_theta": 77.0, "rope_type": "linear",
     "rope_factor": 8.0},
  ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "fields"), IGNORED)
def test_fields_that_a_family_does_not_read(family, fields, copy):
  directory = copy(family)
  expected = read(directory)
  change(directory, **fields)
  assert read(directory) == expected


@pytest.mark.parametrize(("family", "fields", "expected"), HONOURED)
def test_fields_that_a_family_reads(family, fields, expected, copy):
  directory = copy(family)
  before = read(directory)
  change(directory, **fields)
  found = read(directory)
  assert found == type(found)(**before.to_dict() | expected)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("family", "fields"), [*IGNORED, *(case[:2] for case in HONOURED)]
)
def test_transformers_has_the_same_logits(family, fields, copy):
  directory = copy(family)
  change(directory, **fields)
  expected = read_arrays(REFERENCES / family / "expected.npz")
  theirs = judge_logits(directory, expected)
  found = load(directory)
  ours = logits(found.config, LoraSpec(), found.frozen, *batch(expected))
  np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4}
WINDOWS = {"use_sliding_window": True, "sliding_window": 3}


@pytest.mark.parametrize(
  ("family", "fields", "texts"),
  [
    ("llama2", {"is_causal": False}, ["is_causal=False"]),
    ("llama2", {"per_layer_config": {"0": {"hidden_size": 8}}},
     ["per_layer_config"]),
    ("llama2", {"hidden_act": "gelu"}, ["hidden_act='gelu'"]),
    ("gemma3", {"hidden_activation": "relu"}, ["hidden_activation='relu'"]),
    ("gemma3", {"use_bidirectional_attention": True},
     ["use_bidirectional_attention"]),
    ("llama2", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
    ("llama2", {"rope_parameters": DYNAMIC},
     ["rope_type='dynamic'", "remove it"]),
    ("llama2", {"rope_scaling": YARN | {"beta_fast": 0.5}}, ["beta_fast=0.5"]),
    ("llama2", {"rope_scaling": YARN | {"factor": "4"}}, ["factor='4'"]),
    ("llama2", {"rope_scaling": [1]}, ["rope_scaling=[1]"]),
    ("llama2", {"rope_parameters": LINEAR}, ["factor"]),
    ("llama2", {"rope_parameters": LINEAR | {"factor": "4"}},
     ["factor='4' must be a number"]),
    ("llama2", {"rope_parameters": DROPPED, "rope_theta": "1"},
     ["rope_theta='1'"]),
    ("llama2", {"hidden_size": "16"}, ["hidden_size", "'16'"]),
    ("llama2", {"num_hidden_layers": 0}, ["num_hidden_layers=0"]),
    ("llama2", {"num_key_value_heads": 3},
     ["num_attention_heads=4", "num_key_value_heads=3"]),
    ("llama2", {"head_dim": 5}, ["head_dim", "5"]),
    ("llama2", {"rms_norm_eps": "1e-5"}, ["rms_norm_eps", "'1e-5'"]),
    ("llama2", {"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
    ("llama2", {"dtype": "bf16"}, ["dtype='bf16'", "bfloat16"]),
    ("mistral", {"sliding_window": 0}, ["sliding_window=0"]),
    ("mistral", {"layer_types": ["full_attention"] * 3},
     ["layer_types", "'ministral'"]),
    ("qwen2", WINDOWS | {"max_window_layers": 1, "layer_types": DROPPED},
     ["layer_types", "max_window_layers"]),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3},
     ["layer_types", "sliding_window is not set"]),
    ("llama2", {"compression_config": {}}, ["compression_config"]),
    ("llama2", {"model_type": DROPPED},
     ["model_type", "architectures=['LlamaForCausalLM']"]),
  ],
)  # fmt: skip
def test_fields_that_are_refused_by_name(family, fields, texts, copy):
  directory = copy(family)
  change(directory, **fields)
  with pytest.raises(ValueError) as caught:
    load(directory)
  for text in ["config.json", *texts]:
    assert text in str(caught.value)


def test_a_scaling_that_changes_nothing_is_removed_as_the_error_says(copy):
  directory = copy("llama2")
  scaling = {"type": "dynamic", "factor": 4.0}
  change(directory, rope_scaling=scaling)
  with pytest.raises(ValueError, match="changes nothing: remove it"):
    load(directory)
  change(directory, rope_scaling=DROPPED)
  load(directory)


@pytest.mark.slow
def test_a_dynamic_scaling_changes_nothing(copy):
  directory = copy("llama2")
  change(directory, rope_scaling={"type": "dynamic", "factor": 4.0})
  expected = read_arrays(REFERENCES / "llama2" / "expected.npz")
  theirs = judge_logits(directory, expected)
  np.testing.assert_allclose(theirs, expected["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", ["phi3", "gpt2", "mixtral", "nobody_knows"])
def test_other_architectures_are_refused_by_name(kind, tmp_path):
  code = {"AutoConfig": "configuration_x.XConfig"}
  fields = {"model_type": kind, "auto_map": code}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=f"model_type='{kind}'") as caught:
    hf_config.load_hf_config(tmp_path)
  for name in (*FAMILIES, *NESTED):
    assert name in str(caught.value)
