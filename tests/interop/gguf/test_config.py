"""What the metadata of a GGUF file says of the model, or is refused for."""

import math

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text import gguf_tokenizer
from perl_jax.interop import pretrained
from perl_jax.interop.gguf import config as config_lib
from perl_jax.interop.gguf.reading import File
from tests.interop.gguf import models


def read(path, preset="llama_tiny", fields=None, extra=None, **overrides):
  models.write(path, preset, fields=fields, extra=extra, **overrides)
  return config_lib.model_config(File(path))


@pytest.fixture
def path(tmp_path):
  return tmp_path / "tiny.gguf"


def llama3_divisors(theta, width, factor):
  """As llama.cpp's converter computes them for Llama 3.1, one by one."""
  found = []
  for i in range(0, width, 2):
    length = 2 * math.pi * theta ** (i / width)
    smooth = (8192 / length - 1.0) / (4.0 - 1.0)
    if length < 8192 / 4.0:
      found.append(1.0)
    elif length > 8192 / 1.0:
      found.append(factor)
    else:
      found.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(found, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("theta", [500_000.0, 10_000.0])
def test_llama3_scaling_from_its_divisors(path, factor, theta):
  divisors = llama3_divisors(theta, 64, factor)
  shape = {"head_dim": 64, "rope_theta": theta}
  found = read(path, extra={"rope_freqs.weight": divisors}, **shape)
  assert found.rope_type == "llama3"
  assert found.rope_factor == pytest.approx(factor, rel=1e-6)
  assert (found.rope_low_freq_factor, found.rope_high_freq_factor) == (1, 4)
  divisors[-1] *= 1.1
  with pytest.raises(ValueError, match=r"rope_freqs.weight.*Llama 3.1"):
    read(path, extra={"rope_freqs.weight": divisors}, **shape)


def test_linear_scaling(path):
  key = "llama.rope.scaling"
  found = read(path, fields={f"{key}.type": "linear", f"{key}.factor": 4.0})
  assert (found.rope_type, found.rope_factor) == ("linear", 4.0)
  found = read(path, fields={f"{key}.type": "none", f"{key}.factor": 4.0})
  assert found.rope_type == "default"
  assert read(path, fields={"llama.rope.scale_linear": 2.0}).rope_factor == 2
  with pytest.raises(ValueError, match=rf"{key}.type is 'yarn'"):
    read(path, fields={f"{key}.type": "yarn", f"{key}.factor": 4.0})


def test_what_a_missing_key_means(path):
  """The defaults of llama.cpp."""
  fields = dict.fromkeys(
    (
      "gemma2.attention.sliding_window",
      "gemma2.attn_logit_softcapping",
      "gemma2.final_logit_softcapping",
      "gemma2.attention.head_count_kv",
      "gemma2.attention.key_length",
      "gemma2.attention.value_length",
      "gemma2.rope.dimension_count",
      "gemma2.rope.freq_base",
    )
  )
  heads = {"num_heads": 4, "num_kv_heads": 4, "width": 64, "head_dim": 16}
  found = read(path, "gemma2_tiny", fields=fields, **heads)
  assert (found.attn_softcap, found.final_softcap) == (50.0, 30.0)
  assert (found.sliding_window, found.global_every) == (4096, 2)
  assert (found.num_kv_heads, found.head_dim) == (4, 16)
  assert found.rope_theta == 10_000.0
  found = read(path, fields={"llama.rope.freq_base": None})
  assert found.rope_theta == 10_000.0


def test_scale_of_queries(path):
  # The 27 B models divide by the square root of the width of a head as the
  # width of the model has it.
  shape = {"num_layers": 62, "width": 96, "num_heads": 4, "head_dim": 16}
  found = read(path, "gemma3_tiny", **shape)
  assert found.query_scale == pytest.approx((96 / 4) ** -0.5)


def test_windows(path):
  key = "llama.attention.sliding_window"
  found = read(path, fields={key: 7})
  assert (found.sliding_window, found.global_every) == (7, 0)
  with pytest.raises(ValueError, match=r"qwen2.attention.sliding_window is 7"):
    read(path, "qwen2_tiny", fields={"qwen2.attention.sliding_window": 7})
  pattern = "gemma3.attention.sliding_window_pattern"
  assert read(path, "gemma3_tiny", fields={pattern: 3}).global_every == 3
  kinds = [True] * 5 + [False]
  assert read(path, "gemma3_tiny", fields={pattern: kinds}).global_every == 6
  with pytest.raises(ValueError, match=pattern):
    read(path, "gemma3_tiny", fields={pattern: kinds[::-1]})


@pytest.mark.parametrize(
  "key, value",
  [
    ("llama.expert_count", 8),
    ("llama.attention.causal", False),
    ("llama.rope.dimension_count", 8),
    ("llama.attention.value_length", 8),
    ("llama.attention.head_count", [4, 2]),
    ("llama.block_count", None),
    ("llama.block_count", 10**9),
    ("llama.block_count", "two"),
    ("llama.embedding_length", 0),
    ("llama.attention.layer_norm_rms_epsilon", None),
    ("llama.attention.layer_norm_rms_epsilon", float("nan")),
    ("llama.rope.freq_base", "ten"),
    ("llama.attention.scale", 0.3),  # llama.cpp does not read it in a Llama
    ("llama.rope.freq_base", -1.0),
    ("llama.rope.freq_base_swa", 20_000.0),
    ("llama.rope.dimension_count_swa", 8),
    ("llama.attn_logit_softcapping", 30.0),
    ("llama.logit_scale", 0.5),
    ("llama.attention.alibi", True),
    ("llama.tensor_data_layout", "Meta AI original pth"),
    ("general.architecture", "phi3"),
  ],
)
def test_what_the_model_cannot_be(path, key, value):
  with pytest.raises(ValueError) as caught:
    read(path, fields={key: value})
  message = str(caught.value)
  assert str(path) in message and key in message, message
  if key == "general.architecture":
    assert "Supported: llama, qwen2" in message
  else:
    assert "config.base" in message


def test_divisors_that_nothing_reads_or_that_come_twice(path):
  """llama.cpp uses them for a Llama alone, and a factor beside them too."""
  ones = {"rope_freqs.weight": np.ones(8, np.float32)}
  assert read(path, extra=ones).rope_factor == 1
  factor = {"llama.rope.scaling.factor": 2.0}
  for given in ({"preset": "qwen2_tiny"}, {"fields": factor}):
    with pytest.raises(ValueError, match=r"rope_freqs.weight divides"):
      read(path, extra=ones, **given)


def test_shapes_that_no_model_has(path):
  with pytest.raises(ValueError, match=r"tiny.gguf: num_heads=4.*multiple"):
    read(path, fields={"llama.attention.head_count_kv": 3})


ODD = ("x", True, -1, 0, 2.5, math.inf, [1, 2], ["a"], 2**31)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gemma3_tiny", "llama_tiny"])
def test_any_value_is_read_or_refused_by_name(path, preset):
  """No key has a value that ends in an error of another kind."""
  params = models.write(path, preset)
  refused = 0
  for key in File(path).metadata:
    for value in ODD:
      models.write(path, preset, params, fields={key: value})
      for reader in (pretrained.model_config, gguf_tokenizer.build_tokenizer):
        try:
          reader(path)
        except ValueError as error:
          assert str(path) in str(error), (key, value)
          refused += 1
  assert refused > 150


def test_lists_of_equal_numbers_are_one(path):
  found = read(path, fields={"llama.attention.head_count_kv": [2, 2]})
  assert found.num_kv_heads == 2


def test_biases_and_heads_are_told_by_the_tensors(path):
  found = read(
    path, "llama_tiny", tied_head=False, qkv_bias=True, out_bias=True
  )
  assert not found.tied_head and found.qkv_bias and found.out_bias
  assert read(path, "qwen2_tiny").qkv_bias
