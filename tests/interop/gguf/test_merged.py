"""A whole model as a GGUF file: its metadata and every tensor."""

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import params as params_lib  # noqa: E402
from perl_jax import roles  # noqa: E402
from perl_jax.interop.gguf import merged  # noqa: E402
from perl_jax.models import quantization  # noqa: E402
from perl_jax.models.lora import LoraSpec  # noqa: E402
from tests.interop.gguf import models, test_adapter  # noqa: E402

SPEC = LoraSpec(rank=3, alpha=5.0, rslora=True, targets="all")


def policy(preset, params, spec=SPEC, **overrides):
  """The role of a base with an adapter."""
  cfg = models.config(preset, **overrides)
  adapter = test_adapter.adapter(cfg, spec) if spec.rank else {}
  return roles.Role(roles.Backbone(cfg, spec), adapter, params)


def contents(path):
  """({key: (value, types)}, {name: (type, values)}) of a file."""
  reader = gguf.GGUFReader(path)
  fields = {
    key: (field.contents(), field.types)
    for key, field in reader.fields.items()
    if not key.startswith("GGUF.")
  }
  tensors = {
    t.name: (
      t.tensor_type.name,
      gguf.quants.dequantize(t.data, t.tensor_type),
    )
    for t in reader.tensors
  }
  return fields, tensors


@pytest.mark.parametrize(
  ("preset", "kind"),
  [(preset, "f32") for preset in models.ARCHITECTURES]
  + [("gemma2_tiny", kind) for kind in merged.TYPES if kind != "f32"],
)
def test_tensors_are_those_of_the_merged_model(preset, kind, tmp_path):
  """Each within half a step of its type; what has one axis is exact."""
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  role = policy(preset, models.write(like, preset, qtype="F16"))
  merged.save_model(path, role, like=like, kind=kind)
  both = params_lib.merge(role.frozen, role.adapter, role.lora)
  expected = models.tensors(
    role.config,
    models.ARCHITECTURES[preset],
    jax.tree.map(np.asarray, both),
  )
  _, found = contents(path)
  assert set(found) == set(expected)
  for name, (stored, values) in found.items():
    exact = expected[name]
    if stored == "Q8_0":  # a scale in F16 for each 32 values
      largest = np.abs(exact).reshape(-1, 32).max(-1).repeat(32)
      bound = (0.5 / 127 + 2.0**-11) * largest.reshape(exact.shape)
    else:
      steps = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
      bound = steps[stored] * np.abs(exact)
    assert (np.abs(values - exact) <= bound + 1e-7).all(), name
    assert stored == ("F32" if exact.ndim == 1 else kind.upper()), name


@pytest.mark.parametrize("kind", merged.TYPES)
def test_the_metadata_is_that_of_the_base(kind, tmp_path):
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  role = policy("llama_tiny", models.write(like, "llama_tiny", qtype="F16"))
  merged.save_model(path, role, like=like, kind=kind)
  (expected, _), (found, _) = contents(like), contents(path)
  assert found.pop("general.quantization_version")[0] == 2
  number = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[kind]
  assert found.pop("general.file_type")[0] == number
  assert expected.pop("general.file_type")[0] == 1
  assert found.pop("general.name")[0] == "Tiny, tuned with perl_jax"
  assert expected.pop("general.name")[0] == "Tiny"
  assert found == expected
  assert found["tokenizer.chat_template"][0] == models.TEMPLATE


def test_what_is_no_weight_of_ours_is_copied(tmp_path):
  """Frequencies of Llama 3; parts and imatrix are the other file's."""
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  frequencies = np.linspace(1, 8, 8, dtype=np.float32)
  params = models.write(
    like,
    "llama_tiny",
    fields={
      "general.alignment": 64,
      "split.count": 1,
      "quantize.imatrix.entries_count": 3,
    },
    extra={"rope_freqs.weight": frequencies},
  )
  role = policy("llama_tiny", params, LoraSpec())
  merged.save_model(path, role, like=like, kind="f32")
  fields, tensors = contents(path)
  np.testing.assert_array_equal(tensors["rope_freqs.weight"][1], frequencies)
  assert fields["general.alignment"][0] == 64
  assert not [k for k in fields if k.startswith(("split.", "quantize."))]
  for tensor in gguf.GGUFReader(path).tensors:
    assert tensor.data_offset % 64 == 0


def test_rows_that_are_no_blocks_are_kept_in_16_bits(tmp_path):
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  params = models.write(like, "llama_tiny", mlp_width=80)
  role = policy("llama_tiny", params, LoraSpec(), mlp_width=80)
  merged.save_model(path, role, like=like, kind="q8_0")
  _, tensors = contents(path)
  assert tensors["blk.0.ffn_down.weight"][0] == "F16"
  assert tensors["blk.0.ffn_up.weight"][0] == "Q8_0"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", quantization.DTYPES[1:])
def test_a_base_of_fewer_bits_is_merged_as_it_was_trained(dtype, tmp_path):
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  params = params_lib.flatten(models.write(like, "qwen3_tiny"))
  stored = {
    name: quantization.quantize(leaf, dtype)
    if name.endswith("/kernel") and dtype in quantization.QUANTIZED
    else jax.numpy.asarray(leaf, "bfloat16")
    for name, leaf in params.items()
  }
  role = policy("qwen3_tiny", params_lib.unflatten(stored))
  merged.save_model(path, role, like=like, kind="f32")
  exact = params_lib.widen(role.frozen, "float32")
  both = params_lib.merge(exact, role.adapter, role.lora)
  expected = models.tensors(
    role.config, "qwen3", jax.tree.map(np.asarray, both)
  )
  for name, (_, values) in contents(path)[1].items():
    np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=name)


def test_a_value_that_16_bits_do_not_hold_is_refused_by_name(tmp_path):
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  params = models.write(like, "qwen3_tiny")
  params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = 1e5
  role = policy("qwen3_tiny", params, LoraSpec())
  with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight.*1e\+05.*F16"):
    merged.save_model(path, role, like=like, kind="f16")


def test_another_models_file_is_refused(tmp_path):
  like, path = tmp_path / "like.gguf", tmp_path / "out.gguf"
  models.write(like, "llama_tiny")
  role = policy("qwen3_tiny", models.write(tmp_path / "q.gguf", "qwen3_tiny"))
  with pytest.raises(ValueError, match=r"like.gguf has no blk.0.attn_k_norm"):
    merged.save_model(path, role, like=like, kind="f16")
