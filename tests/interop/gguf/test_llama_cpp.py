"""What llama.cpp says with our files, beside what we say.

In float32 both agree to 2e-4 as everywhere else, but for Gemma: llama.cpp looks
its GELU up in a table of 16 bits, and log-probs differ by up to 0.01.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp, package xllamacpp")

from perl_jax import params as params_lib
from perl_jax.interop.gguf import merged
from perl_jax.models.lora import LoraSpec
from tests.interop.gguf import client, models, test_adapter, test_merged
from tests.interop.tiny import logits

pytestmark = pytest.mark.slow
EXACT, TABLE = 2e-4, 0.01
COUNT = 16


def tolerance(preset):
  return TABLE if preset.startswith("gemma") else EXACT


def log_probs(cfg, lora, params, prompt, response):
  """Of the response's tokens and all others in their places, `[T, V]`."""
  tokens = jnp.asarray([[*prompt, *response]])
  found = logits(cfg, lora, params, tokens, jnp.asarray([tokens.shape[1]]))
  return np.array(jax.nn.log_softmax(found)[0, len(prompt) - 1 : -1])


def prompt_of(cfg, seed=0, length=24):
  return np.random.default_rng(seed).integers(3, cfg.vocab_size, length)


def compare(served, cfg, lora, params, *, within, **options):
  """Greedy responses are the same; returns log-probs, which agree."""
  prompt = prompt_of(cfg)
  response, theirs = served.greedy(
    prompt, COUNT, probs=cfg.vocab_size, **options
  )
  ours = log_probs(cfg, lora, params, prompt, response)
  np.testing.assert_allclose(ours, theirs, atol=within, rtol=0)
  ours[:, models.ENDS] -= 100.0
  assert ours.argmax(-1).tolist() == response
  return theirs


@pytest.mark.parametrize("preset", models.ARCHITECTURES)
def test_a_base_with_adapters(preset, tmp_path):
  """Every family, every kind of scale; factors on the scale too."""
  cfg = models.config(preset)
  params = models.write(tmp_path / "base.gguf", preset)
  leaves = {
    kind: test_adapter.adapter(cfg, spec)
    for kind, spec in test_adapter.SPECS.items()
  }
  files = [
    test_adapter.save(tmp_path / f"{kind}.gguf", preset, spec, leaves[kind])
    for kind, spec in test_adapter.SPECS.items()
  ]
  within = tolerance(preset)
  with client.serving(tmp_path / "base.gguf", files) as served:
    base = compare(
      served, cfg, LoraSpec(), params, within=within, loras={0: 0.0}
    )
    for number, (kind, spec) in enumerate(test_adapter.SPECS.items()):
      adapted = params_lib.combine(leaves[kind], params)
      found = compare(
        served, cfg, spec, adapted, within=within, loras={number: 1.0}
      )
      assert np.abs(found[0] - base[0]).max() > 50 * within


# llama.cpp rounds activations to the type of the matrix that they meet. What
# that does to log-probs, root mean square, as a part of their spread: seen are
# 0.0005 (the table), 0.003 and, of these peaked toy models, 0.07.
ROUNDED = {"f32": 0.001, "f16": 0.006, "q8_0": 0.12}


@pytest.mark.parametrize("preset", models.ARCHITECTURES)
def test_the_merged_model(preset, tmp_path):
  """In float32 as base and adapter; else as we say of the file's values."""
  like = tmp_path / "like.gguf"
  role = test_merged.policy(preset, models.write(like, preset))
  prompt = prompt_of(role.config)
  for kind, rounded in ROUNDED.items():
    path = tmp_path / f"{kind}.gguf"
    merged.save_model(path, role, like=like, kind=kind)
    with client.serving(path) as served:
      response, theirs = served.greedy(
        prompt, COUNT, probs=role.config.vocab_size
      )
    stored = models.read(path, preset)
    ours = log_probs(role.config, LoraSpec(), stored, prompt, response)
    error = np.sqrt(np.mean((ours - theirs) ** 2))
    assert error <= rounded * ours.std(), kind
    if kind == "f32":
      params = params_lib.combine(role.adapter, role.frozen)
      ours = log_probs(role.config, role.lora, params, prompt, response)
      np.testing.assert_allclose(ours, theirs, atol=tolerance(preset), rtol=0)
