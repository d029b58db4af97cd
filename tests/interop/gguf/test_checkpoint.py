"""GGUF files as bases: the same weights and logits as other readers find."""

import shutil

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import params as params_lib  # noqa: E402
from perl_jax import sharding  # noqa: E402
from perl_jax.data.text import tokenization  # noqa: E402
from perl_jax.interop import hf_export, pretrained  # noqa: E402
from perl_jax.interop.storage import Storage  # noqa: E402
from perl_jax.models.lora import LoraSpec  # noqa: E402
from tests.interop import tiny  # noqa: E402
from tests.interop.gguf import models  # noqa: E402

# Of these `transformers` takes the width of a head and the scale of queries for
# those of the released models, whatever the file says.
THEIRS = {
  "llama_tiny": {},
  "qwen2_tiny": {},
  "qwen3_tiny": {"head_dim": 128},
  "gemma2_tiny": {"head_dim": 256},
  "gemma3_tiny": {"head_dim": 256},
}


def load(path, *, dtype="float32", devices=1):
  mesh = sharding.make_mesh(
    data=1, fsdp=devices, tensor=1, devices=jax.devices()[:devices]
  )
  return pretrained.load(path, mesh=mesh, storage=Storage(dtype))


def tokens(config, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(1, config.vocab_size, (2, 24))


def logits(role, rows):
  lengths = np.full(len(rows), rows.shape[1])
  return tiny.logits(role.config, LoraSpec(), role.frozen, rows, lengths)


def theirs(path):
  """The model that `transformers` makes of a file, in float32."""
  torch = pytest.importorskip("torch", reason="transformers reads GGUF with it")
  transformers = pytest.importorskip("transformers")
  return torch, transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()


def same(found, expected):
  found, expected = params_lib.flatten(found), params_lib.flatten(expected)
  assert found.keys() == expected.keys()
  for name, leaf in expected.items():
    np.testing.assert_allclose(found[name], leaf, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("preset", models.ARCHITECTURES)
def test_every_leaf(preset, devices, tmp_path):
  params = models.write(tmp_path / "tiny.gguf", preset)
  found = load(tmp_path / "tiny.gguf", devices=devices)
  assert found.config == models.config(preset)
  assert not found.trainable
  same(found.frozen, params)


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("layers/attention/k/kernel", r"blk\.1\.attn_k\.weight"),
    ("layers/mlp_norm/scale", r"blk\.1\.ffn_norm\.weight"),
    ("embedding", r"token_embd\.weight"),
  ],
)
def test_numbers_that_are_not_finite(path, name, tmp_path):
  file, leaves = (
    tmp_path / "tiny.gguf",
    params_lib.flatten(models.drawn("llama_tiny", seed=0)),
  )
  leaf = np.array(leaves[path])
  leaf.flat[-1] = np.nan
  models.write(file, "llama_tiny", params_lib.unflatten(leaves | {path: leaf}))
  with pytest.raises(ValueError, match=rf"tiny\.gguf: {name} has numbers"):
    load(file, devices=8)


def test_chunks_of_rows(tmp_path, monkeypatch):
  """A matrix that is dequantised a few rows at a time is the same matrix."""
  path = tmp_path / "tiny.gguf"
  models.write(path, "llama_tiny", qtype="Q8_0")
  whole = load(path)
  monkeypatch.setattr("perl_jax.interop.gguf.checkpoint._CHUNK", 200)
  same(load(path).frozen, whole.frozen)


@pytest.mark.slow
@pytest.mark.parametrize("preset", THEIRS)
def test_logits_beside_transformers(preset, tmp_path):
  path = tmp_path / "tiny.gguf"
  models.write(path, preset, **THEIRS[preset])
  torch, model = theirs(path)
  role = load(path)
  rows = tokens(role.config)
  with torch.no_grad():
    expected = model(input_ids=torch.tensor(rows)).logits.numpy()
  found = logits(role, rows)
  assert np.abs(expected).max() > 0.5
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "nf4"])
def test_storage(dtype, tmp_path):
  """On a mesh, the bits are those of the same weights in a directory."""
  path = tmp_path / "tiny.gguf"
  params = models.write(path, "qwen2_tiny")
  (tmp_path / "hf").mkdir()
  hf_export.save_model(
    tmp_path / "hf",
    models.config("qwen2_tiny"),
    params,
    hf_export.Stops(models.ENDS, None, 0),
    dtype="float32",
    shard_bytes=10**9,
  )
  found, other = (
    load(place, dtype=dtype, devices=8).frozen
    for place in (path, tmp_path / "hf")
  )
  assert params_lib.is_quantized(found) == (dtype != "bfloat16")
  assert params_lib.fingerprint(found) == params_lib.fingerprint(other)
  scale = params_lib.flatten(found)["layers/attention_norm/scale"]
  np.testing.assert_allclose(
    np.asarray(scale, np.float32),
    params_lib.flatten(params)["layers/attention_norm/scale"],
    rtol=1e-2,
  )


def test_a_directory_with_one_file(tmp_path):
  params = models.write(tmp_path / "tiny.gguf", "llama_tiny")
  assert pretrained.kind_of(tmp_path) == pretrained.GGUF
  assert pretrained.place_of(tmp_path) == tmp_path / "tiny.gguf"
  same(load(tmp_path).frozen, params)
  shutil.copy(tmp_path / "tiny.gguf", tmp_path / "other.gguf")
  with pytest.raises(ValueError, match=r"2 GGUF files: other.gguf, tiny.gguf"):
    pretrained.kind_of(tmp_path)
  # Beside a checkpoint of transformers they are nobody's business.
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  assert pretrained.kind_of(tmp_path) == pretrained.HUGGING_FACE


def test_a_file_with_another_name(tmp_path):
  """Ollama's files are named by their checksum."""
  models.write(tmp_path / "sha256-0a", "llama_tiny")
  with pytest.raises(ValueError, match=r"ln -s .*sha256-0a NAME\.gguf"):
    pretrained.kind_of(tmp_path / "sha256-0a")
  (tmp_path / "blob.gguf").symlink_to(tmp_path / "sha256-0a")
  assert pretrained.kind_of(tmp_path / "blob.gguf") == pretrained.GGUF


def test_where_the_tokenizer_is(tmp_path):
  path = tmp_path / "tiny.gguf"
  models.write(path, "llama_tiny")
  assert pretrained.tokenizer_of(path) == path
  (tmp_path / "tokenizer.json").write_text("{}")
  assert pretrained.tokenizer_of(path) == tmp_path


def test_tensors_that_the_metadata_does_not_describe(tmp_path):
  path = tmp_path / "tiny.gguf"
  extra = {
    "blk.0.attn_q.weight": np.zeros((8, 64), np.float32),
    "blk.1.ffn_up.weight": None,
    "blk.0.ffn_gate_exps.weight": np.zeros((2, 64), np.float32),
  }
  models.write(path, "llama_tiny", extra=extra)
  with pytest.raises(ValueError) as caught:
    load(path)
  message = str(caught.value)
  assert str(path) in message and "config.base" in message
  assert "blk.0.attn_q.weight has shape (8, 64), expected (64, 64)" in message
  assert "blk.1.ffn_up.weight is missing" in message
  assert "blk.0.ffn_gate_exps.weight is unknown" in message


@pytest.mark.slow
def test_a_real_model_beside_transformers(tmp_path, smollm2):
  """SmolLM2-135M-Instruct: logits of a conversation, and 64 greedy tokens."""
  path = tmp_path / "smollm2.gguf"
  path.symlink_to(smollm2)
  torch, model = theirs(path)
  role = load(path)
  tokenizer = tokenization.load_tokenizer(pretrained.tokenizer_of(path))
  prompt, _ = tokenizer.encode_prompt(
    [{"role": "user", "content": "Name three rivers of France, and why."}]
  )
  with torch.no_grad():
    answer = model.generate(
      torch.tensor([prompt]), do_sample=False, max_new_tokens=64
    )[0].numpy()
    expected = model(input_ids=torch.tensor(answer[None])).logits.numpy()
  found = np.asarray(logits(role, answer[None]))
  np.testing.assert_allclose(found, expected, atol=2e-4)
  # Teacher forcing: each token is the one that we would have chosen as well.
  chosen = found[0, len(prompt) - 1 : -1].argmax(-1)
  np.testing.assert_array_equal(chosen, answer[len(prompt) :])
  assert len(answer) - len(prompt) == 64 or answer[-1] in tokenizer.stop_ids
