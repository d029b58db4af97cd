"""An adapter as a GGUF file: what is in it, and what llama.cpp makes of it."""

import jax
import numpy as np
import pytest
import safetensors.numpy

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import files  # noqa: E402
from perl_jax import params as params_lib  # noqa: E402
from perl_jax.interop import peft  # noqa: E402
from perl_jax.interop.gguf import adapter as adapter_lib  # noqa: E402
from perl_jax.models.lora import PROJECTIONS, LoraSpec  # noqa: E402
from tests import toys  # noqa: E402
from tests.interop.gguf import models  # noqa: E402

SPECS = {
  "plain": LoraSpec(rank=4, alpha=6.0, targets="all"),
  "rslora": LoraSpec(rank=3, alpha=5.0, rslora=True),
  "one": LoraSpec(rank=1, alpha=2.0, targets="attention/k|mlp/down"),
}


def adapter(cfg, spec):
  """LoRA leaves alone, drawn so that they move logits by units."""
  leaves = params_lib.flatten(toys.random_params(cfg, spec, seed=5))
  return params_lib.unflatten(
    {p: leaf for p, leaf in leaves.items() if params_lib.is_adapter(p)}
  )


def save(path, preset, spec, leaves=None):
  cfg = models.config(preset)
  adapter_lib.save_adapter(
    path,
    cfg,
    spec,
    adapter(cfg, spec) if leaves is None else leaves,
    architecture=models.ARCHITECTURES[preset],
    name="Tiny adapter",
  )
  return path


def deltas(path):
  """What llama.cpp adds to each matrix, by name, computed as it does."""
  reader = gguf.GGUFReader(path)
  alpha = reader.fields["adapter.lora.alpha"].contents()
  tensors = {t.name: t.data for t in reader.tensors}
  names = {name.removesuffix(".lora_a") for name in tensors}
  names = {name.removesuffix(".lora_b") for name in names}
  assert len(tensors) == 2 * len(names)
  found = {}
  for name in names:
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    found[name] = alpha / len(a) * (b @ a)
  return found


@pytest.mark.parametrize("preset", models.ARCHITECTURES)
@pytest.mark.parametrize("kind", SPECS)
def test_what_is_added_is_what_a_merge_adds(preset, kind, tmp_path):
  """By name, in the order of the rows that the converter gives a base."""
  cfg, spec = models.config(preset), SPECS[kind]
  leaves, base = adapter(cfg, spec), toys.random_params(cfg)
  found = deltas(save(tmp_path / "a.gguf", preset, spec, leaves))
  architecture = models.ARCHITECTURES[preset]
  before, after = (
    models.tensors(cfg, architecture, jax.tree.map(np.asarray, dict(tree)))
    for tree in (base, params_lib.merge(base, leaves, spec))
  )
  changed = {n for n in before if not np.array_equal(before[n], after[n])}
  assert set(found) == changed
  adapted = [name for name in PROJECTIONS if spec.adapts(name)]
  assert len(found) == cfg.num_layers * len(adapted)
  for name, delta in found.items():
    np.testing.assert_allclose(
      delta, after[name] - before[name], atol=2e-6, err_msg=name
    )


def test_the_metadata_of_an_adapter(tmp_path):
  path = save(tmp_path / "a.gguf", "gemma3_tiny", SPECS["rslora"])
  reader = gguf.GGUFReader(path)
  found = {k: v.contents() for k, v in reader.fields.items()}
  found = {k: v for k, v in found.items() if not k.startswith("GGUF.")}
  assert found == {
    "general.architecture": "gemma3",
    "general.type": "adapter",
    "general.name": "Tiny adapter",
    "general.file_type": 0,
    "adapter.type": "lora",
    "adapter.lora.alpha": pytest.approx(5.0 * 3**0.5),
  }
  assert {t.tensor_type.name for t in reader.tensors} == {"F32"}


def test_ranks_and_alphas_that_differ_between_modules(tmp_path):
  """A PEFT adapter with patterns: alpha / sqrt(r) B A, each with its own."""
  cfg, rng = models.config("llama_tiny"), np.random.default_rng(3)
  ranks, alphas = {"q_proj": 3, "k_proj": 2}, {"q_proj": 4.0, "k_proj": 9.0}
  rows = {"q_proj": cfg.num_heads, "k_proj": cfg.num_kv_heads}
  tensors, expected = {}, {}
  for layer in range(cfg.num_layers):
    for module, rank in ranks.items():
      a = rng.normal(size=(rank, cfg.width)).astype(np.float32)
      b = rng.normal(size=(rows[module] * cfg.head_dim, rank))
      b = b.astype(np.float32)
      name = f"model.layers.{layer}.self_attn.{module}"
      tensors[f"base_model.model.{name}.lora_A.weight"] = a
      tensors[f"base_model.model.{name}.lora_B.weight"] = b
      delta = alphas[module] / rank**0.5 * (b @ a)
      expected[f"blk.{layer}.attn_{module[0]}.weight"] = models.as_llama_cpp(
        cfg, "llama", f"{name}.weight", delta
      )
  safetensors.numpy.save_file(tensors, tmp_path / peft.WEIGHTS)
  settings = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": True,
    "rank_pattern": {"q_proj": 3},
    "alpha_pattern": {"k_proj": 9},
    "target_modules": sorted(ranks),
  }
  files.write_json(tmp_path / peft.CONFIG, settings)
  role = peft.load_adapter(tmp_path, cfg)
  path = save(tmp_path / "a.gguf", "llama_tiny", role.lora, role.adapter)
  found = deltas(path)
  assert sorted(found) == sorted(expected)
  for name, delta in expected.items():
    np.testing.assert_allclose(found[name], delta, atol=2e-5, err_msg=name)
