"""Metadata as llama.cpp reads it: log-probs of its server, beside ours.

Each case sets what a converter writes for some model of its family, and what
the file says otherwise would give other log-probs.
"""

import jax
import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp, package xllamacpp")

from perl_jax import sharding
from perl_jax.interop import pretrained
from perl_jax.interop.storage import Storage
from perl_jax.models.lora import LoraSpec
from tests.interop.gguf import client, models
from tests.interop.gguf.test_config import llama3_divisors
from tests.interop.gguf.test_llama_cpp import (
  log_probs,
  prompt_of,
  tolerance,
)

pytestmark = pytest.mark.slow
CONTEXT = 256
SCALING = "rope.scaling"
# Preset, keys without the architecture, and fields of the model that the
# tensors are for; None leaves a key out.
CASES = {
  "linear": ("llama_tiny", {f"{SCALING}.factor": 4.0}, {}),
  "linear by name": (
    "qwen2_tiny",
    {f"{SCALING}.type": "linear", f"{SCALING}.factor": 4.0},
    {},
  ),
  "older linear": ("qwen3_tiny", {"rope.scale_linear": 4.0}, {}),
  "a factor of no scaling": (
    "llama_tiny",
    {f"{SCALING}.type": "none", f"{SCALING}.factor": 4.0},
    {"rope_theta": 100.0},
  ),
  "base": ("llama_tiny", {"rope.freq_base": 100.0}, {}),
  "no base": ("llama_tiny", {"rope.freq_base": None}, {"rope_theta": 100.0}),
  "epsilon": ("qwen3_tiny", {"attention.layer_norm_rms_epsilon": 0.3}, {}),
  "biases and a head": (
    "llama_tiny",
    {},
    {"out_bias": True, "qkv_bias": True, "mlp_bias": True, "tied_head": False},
  ),
  "one key head": ("qwen2_tiny", {}, {"num_kv_heads": 1}),
  "no softcaps": (
    "gemma2_tiny",
    {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    {},
  ),
  "softcaps": (
    "gemma2_tiny",
    {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    {},
  ),
  "no window": ("gemma3_tiny", {"attention.sliding_window": None}, {}),
  "local base": ("gemma3_tiny", {"rope.freq_base_swa": 50.0}, {}),
  "Gemma 3 of 4 B": (
    "gemma3_tiny",
    {f"{SCALING}.type": "linear", f"{SCALING}.factor": 8.0},
    {},
  ),
  "Gemma 3 of 27 B": (
    "gemma3_tiny",
    {},
    {"num_layers": 62, "width": 96, "mlp_width": 32},
  ),
  "Gemma 2 of 27 B": (
    "gemma2_tiny",
    {},
    {"num_layers": 46, "width": 96, "mlp_width": 32},
  ),
}
# Through 44 layers of Gemma 2 llama.cpp's table for GELU makes 0.2; the scale
# of smaller models would make 9.
TOLERANCES = {"Gemma 2 of 27 B": 0.3}


def load(path):
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  return pretrained.load(path, mesh=mesh, storage=Storage("float32"))


def compare(path, plain, within):
  """Both agree; without what is special about the file they would not."""
  role = load(path)
  cfg = role.config
  prompt = prompt_of(cfg, length=CONTEXT // 2)
  with client.serving(path, context=CONTEXT) as served:
    response, theirs = served.greedy(prompt, 8, probs=cfg.vocab_size)
  lora, base = LoraSpec(), role.frozen
  ours = log_probs(cfg, lora, base, prompt, response)
  np.testing.assert_allclose(ours, theirs, atol=within, rtol=0)
  if plain is not None:
    other = log_probs(plain, lora, base, prompt, response)
    assert np.abs(other - theirs).max() > 10 * within


@pytest.mark.parametrize("case", CASES)
def test_as_llama_cpp_reads_it(case, tmp_path):
  preset, keys, overrides = CASES[case]
  path = tmp_path / "tiny.gguf"
  architecture = models.ARCHITECTURES[preset]
  fields = {f"{architecture}.{key}": value for key, value in keys.items()}
  models.write(path, preset, fields=fields, **overrides | {"max_len": CONTEXT})
  plain = models.config(preset, **overrides | {"max_len": CONTEXT})
  within = TOLERANCES.get(case, tolerance(preset))
  compare(path, None if plain == load(path).config else plain, within)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling(factor, tmp_path):
  path = tmp_path / "tiny.gguf"
  shape = {"head_dim": 32, "rope_theta": 500_000.0, "max_len": CONTEXT}
  divisors = llama3_divisors(shape["rope_theta"], shape["head_dim"], factor)
  models.write(
    path, "llama_tiny", extra={"rope_freqs.weight": divisors}, **shape
  )
  plain = models.config("llama_tiny", **shape)
  compare(path, plain, tolerance("llama_tiny"))
