"""config.json and ModelConfig say the same, in both directions."""

import codecs
import json

import pytest
import transformers

from perl_jax.interop import hf_checkpoint, hf_config, hf_config_out
from perl_jax.models import presets
from perl_jax.models.config import ModelConfig

OWN = dict(dtype="bfloat16", remat="full", scan_unroll=2, attention="xla")


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
@pytest.mark.parametrize("reward", [False, True])
def test_every_preset_is_a_model_of_transformers(name, reward):
  config = presets.preset(name, vocab_size=64, max_len=128, **OWN)
  made = hf_config_out.hf_config(config, reward=reward)
  found = hf_config.model_config(made, name)
  ours, theirs = config.to_dict(), found.to_dict()
  for field in (*OWN, "query_scale"):
    del ours[field], theirs[field]
  assert theirs == ours
  scale = config.query_scale or config.head_dim**-0.5
  assert (found.query_scale or found.head_dim**-0.5) == pytest.approx(scale)
  (architecture,) = made.architectures
  assert architecture.endswith(
    "ForSequenceClassification" if reward else "ForCausalLM"
  )
  assert not reward or made.num_labels == 1


def test_scaled_rotary_positions_of_llama_3():
  config = presets.preset(
    "llama_tiny",
    vocab_size=64,
    rope_type="llama3",
    rope_theta=500_000.0,
    rope_factor=32.0,
    rope_low_freq_factor=1.0,
    rope_high_freq_factor=4.0,
    rope_original_max_len=512,
  )
  made = hf_config_out.hf_config(config)
  assert made.rope_parameters["rope_type"] == "llama3"
  assert hf_config.model_config(made, "x") == config


@pytest.mark.parametrize(
  ("preset", "changes", "message"),
  [
    ("qwen3_tiny", {"qkv_bias": True}, "out_bias=False would be True"),
    ("llama_tiny", {"sliding_window": 4, "global_every": 2}, "windows="),
    ("llama_tiny", {"embed_scale": True}, "embed_scale=True would be False"),
    ("gemma2_tiny", {"query_scale": 0.3}, "query_scale=0.3 would be 0.30151"),
    ("qwen2_tiny", {"mlp_bias": True}, "mlp_bias=True would be False"),
  ],
)
def test_models_that_nobody_else_has_are_refused(preset, changes, message):
  config = presets.preset(preset, vocab_size=64, **changes)
  with pytest.raises(ValueError, match="No Hugging Face") as caught:
    hf_config_out.hf_config(config)
  assert message in str(caught.value)


def test_old_and_new_spellings_are_one(tmp_path):
  """rope_theta and rope_scaling were fields of their own before 2026."""
  old = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {
      "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
    },
    "tie_word_embeddings": True,
  }  # fmt: skip
  (tmp_path / "config.json").write_text(json.dumps(old))
  found = hf_config.model_config(hf_config.load_hf_config(tmp_path), "old")
  assert found == ModelConfig(
    vocab_size=64, num_layers=2, width=32, mlp_width=64, num_heads=4,
    num_kv_heads=2, head_dim=8, max_len=4096, norm_eps=1e-5,
    rope_theta=500000.0, rope_type="llama3", rope_factor=8.0,
    rope_original_max_len=512,
  )  # fmt: skip


def test_a_model_with_vision_around_one_that_is_known(tmp_path):
  path = tmp_path / "config.json"
  text = {"model_type": "llama"}
  path.write_text(json.dumps({"model_type": "idefics3", "text_config": text}))
  with pytest.raises(ValueError, match=r"'idefics3'.* is 'llama', which is:"):
    hf_config.load_hf_config(tmp_path)
  text["model_type"] = "mamba"
  path.write_text(json.dumps({"model_type": "vlm", "text_config": text}))
  with pytest.raises(ValueError, match=r"'vlm' is not supported\. Supported"):
    hf_config.load_hf_config(tmp_path)


def test_a_byte_order_mark(tmp_path):
  fields = hf_config_out.hf_config(presets.preset("llama_tiny", vocab_size=64))
  path = tmp_path / "config.json"
  path.write_bytes(codecs.BOM_UTF8 + json.dumps(fields.to_dict()).encode())
  with pytest.raises(
    ValueError, match=rf"{path} begins with a byte order mark"
  ):
    hf_config.load_hf_config(tmp_path)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["auto", "torch.bfloat16"])
def test_other_spellings_of_a_dtype(tmp_path, name, value):
  """Scripts write them; transformers reads them if it is given a dtype."""
  fields = hf_config_out.hf_config(presets.preset("llama_tiny", vocab_size=64))
  fields = {k: v for k, v in fields.to_dict().items() if "dtype" not in k}
  path = tmp_path / "config.json"
  path.write_text(json.dumps(fields))
  plain = hf_config.model_config(hf_config.load_hf_config(tmp_path), "x")
  path.write_text(json.dumps(fields | {name: value}))
  transformers.AutoConfig.from_pretrained(tmp_path, dtype="float32")
  hf = hf_config.load_hf_config(tmp_path)
  assert hf_config.model_config(hf, "x") == plain


@pytest.mark.parametrize(
  ("written", "read"), [(-1, None), (0, 0), (None, None)]
)
def test_padding_that_is_none(tmp_path, written, read):
  fields = hf_config_out.hf_config(presets.preset("llama_tiny", vocab_size=64))
  path = tmp_path / "config.json"
  path.write_text(json.dumps(fields.to_dict() | {"pad_token_id": written}))
  assert hf_checkpoint.pad_id(tmp_path) == read


def test_the_gelu_of_the_first_gemma_is_that_by_tanh(tmp_path):
  """Its config.json says "gelu"; the model was trained with the other."""
  made = hf_config_out.hf_config(presets.preset("gemma_tiny", vocab_size=64))
  made.hidden_act = "gelu"
  assert hf_config.model_config(made, "x").activation == "gelu_tanh"
