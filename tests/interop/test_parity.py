"""The same weights give the same numbers here and in PyTorch.

What PyTorch said lies in `references/`, made by `torch_side.py`. Where PyTorch
and PEFT are installed the same is made anew, from another seed, and compared.
"""

import dataclasses
import functools
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from perl_jax import params as params_lib
from perl_jax import roles, sampling, sharding
from perl_jax.interop import hf_checkpoint, hf_export, hf_weights, peft
from perl_jax.interop.storage import Storage
from perl_jax.models.lora import LoraSpec
from tests.archives import read_arrays
from tests.interop import torch_side
from tests.interop.tiny import REFERENCES, batch, load, logits, scores

TOLERANCE = 2e-4
HAS_TORCH = all(map(importlib.util.find_spec, ("torch", "peft")))


def _live(family):
  return pytest.param(
    f"live/{family}",
    marks=[
      pytest.mark.slow,
      pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch and PEFT"),
    ],
  )


CASES = [*torch_side.FAMILIES, *map(_live, torch_side.FAMILIES)]


def run_torch(*arguments):
  """`torch_side` in a process of its own."""
  command = [sys.executable, "-m", "tests.interop.torch_side"]
  done = subprocess.run(
    [*command, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Directory of a case; live ones are made once, all together."""

  @functools.cache
  def live():
    directory = tmp_path_factory.mktemp("live")
    run_torch(directory, "1234")
    return directory

  def make(case):
    if case.startswith("live/"):
      return live() / case.removeprefix("live/")
    return REFERENCES / case

  return make


@pytest.fixture(params=CASES)
def case(request, made):
  """(directory, what PyTorch said) of a family."""
  directory = made(request.param)
  return directory, read_arrays(directory / "expected.npz")


def test_logits(case):
  """Lengths differ, and positions go past the windows."""
  directory, expected = case
  found = load(directory / "checkpoint")
  assert expected["lengths"].max() > 4 * (found.config.sliding_window or 1)
  ours = logits(found.config, LoraSpec(), found.frozen, *batch(expected))
  np.testing.assert_allclose(ours, expected["logits"], atol=TOLERANCE, rtol=0)


def test_logits_in_bfloat16_are_near(case):
  """Weights and activations of 8 bits: within 5 % of the logits' spread."""
  directory, expected = case
  found = load(directory / "checkpoint", "bfloat16")
  assert found.frozen["embedding"].dtype == jnp.bfloat16
  config = dataclasses.replace(found.config, dtype="bfloat16")
  ours = logits(config, LoraSpec(), found.frozen, *batch(expected))
  error = np.sqrt(np.mean((ours - expected["logits"]) ** 2))
  assert error <= 0.05 * expected["logits"].std()


def test_greedy_decoding_of_64_tokens(case):
  """Prefill and cache against full passes; the prompt is padded on the left."""
  directory, expected = case
  found = load(directory / "checkpoint")
  sampler = sampling.make_sampler(
    roles.Backbone(found.config, LoraSpec()),
    sampling.SamplingSpec(
      response_len=torch_side.NEW,
      stop_ids=(found.config.vocab_size,),
      pad_id=0,
      temperature=1.0,
      greedy=True,
    ),
  )
  prompt = expected["tokens"][0, : torch_side.PROMPT]
  padded = np.concatenate([np.zeros(4, prompt.dtype), prompt])[None]
  samples = jax.jit(sampler)(
    found.frozen,
    jnp.asarray(padded),
    jnp.asarray([len(prompt)]),
    jnp.zeros(1, jnp.int32),
    jax.random.key(0),
  )
  np.testing.assert_array_equal(samples.tokens[0], expected["greedy"])


def test_adapter_of_peft(case):
  directory, expected = case
  found = load(directory / "checkpoint")
  adapter = peft.load_adapter(directory / "adapter", found.config)
  assert adapter.lora == LoraSpec(rank=2, alpha=6.0, targets="all")
  assert adapter.head is None
  ours = logits(
    found.config,
    adapter.lora,
    params_lib.combine(adapter.adapter, found.frozen),
    *batch(expected),
  )
  np.testing.assert_allclose(
    ours, expected["adapter_logits"], atol=TOLERANCE, rtol=0
  )
  assert np.abs(expected["adapter_logits"] - expected["logits"]).max() > 0.1


def test_reward_adapter_of_peft(case):
  directory, expected = case
  found = load(directory / "checkpoint")
  adapter = peft.load_adapter(directory / "reward_adapter", found.config)
  assert adapter.lora == LoraSpec(rank=2, alpha=6.0)
  ours = scores(
    found.config,
    adapter.lora,
    params_lib.combine(adapter.adapter, found.frozen) | adapter.head,
    *batch(expected),
  )
  np.testing.assert_allclose(
    ours, expected["adapter_scores"], atol=TOLERANCE, rtol=0
  )


def test_reward_checkpoint(case):
  """`AutoModelForSequenceClassification` as TRL saves it, on its own base."""
  directory, expected = case
  found = load(directory / "reward_checkpoint")
  ours = scores(
    found.config,
    LoraSpec(),
    found.frozen | found.head,
    *batch(expected),
  )
  np.testing.assert_allclose(
    ours, expected["checkpoint_scores"], atol=TOLERANCE, rtol=0
  )


OF_VISION = re.compile(r"vision_tower|multi_modal_projector")


def nested(directory, role="policy"):
  """Whether an adapter of PEFT names the layers within a larger model."""
  base = "checkpoint" if role == "policy" else "reward_checkpoint"
  return hf_checkpoint.takes_nested(directory / base, reward=False)


def same_tensors(found, expected):
  """The same names and bytes, what sees images left out."""
  found, expected = map(safetensors.numpy.load_file, (found, expected))
  expected = {n: t for n, t in expected.items() if not OF_VISION.search(n)}
  assert sorted(found) == sorted(expected)
  for name, tensor in expected.items():
    assert found[name].dtype == tensor.dtype, name
    np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_weights_out_are_the_weights_in(case, tmp_path):
  directory, _ = case
  found = load(directory / "checkpoint")
  hf_weights.save_base(tmp_path, found.config, found.frozen, dtype="float32")
  expected = directory / "checkpoint" / hf_weights.SINGLE
  if nested(directory):  # what is written is the language model by itself
    tensors = safetensors.numpy.load_file(expected)
    plain = {n.removeprefix("language_model."): t for n, t in tensors.items()}
    expected = tmp_path / "expected"
    safetensors.numpy.save_file(plain, expected)
  same_tensors(tmp_path / hf_weights.SINGLE, expected)


@pytest.mark.parametrize("name", ["adapter", "reward_adapter"])
def test_adapters_out_are_the_adapters_in(case, name, tmp_path):
  """Names and bytes are PEFT's own."""
  directory, _ = case
  found = load(directory / "checkpoint")
  adapter = peft.load_adapter(directory / name, found.config)
  base = peft.base_of(directory / name)
  peft.save_adapter(
    tmp_path,
    found.config,
    adapter.lora,
    adapter.adapter,
    base=base,
    head=adapter.head,
    nested=nested(directory, "reward" if adapter.head else "policy"),
  )
  same_tensors(tmp_path / peft.WEIGHTS, directory / name / peft.WEIGHTS)
  again = peft.load_adapter(tmp_path, found.config)
  assert again.lora == adapter.lora and peft.base_of(tmp_path) == base


def test_shards_are_read_as_one(tmp_path):
  """Many files and an index, cut wherever 20 kB were full."""
  source = REFERENCES / "gemma2" / "checkpoint"
  found = load(source)
  shutil.copy(source / "config.json", tmp_path)
  files = hf_weights.save_base(
    tmp_path,
    found.config,
    found.frozen,
    dtype="float32",
    shard_bytes=5_000,
  )
  assert len(files) > 3 and not (tmp_path / hf_weights.SINGLE).exists()
  again = load(tmp_path)
  params_lib.require_same_leaves(found.frozen, again.frozen, "shards")
  assert params_lib.fingerprint(again.frozen) == params_lib.fingerprint(
    found.frozen
  )


@pytest.mark.parametrize("family", ["llama3", "gemma2", "qwen2"])
def test_leaves_are_read_to_where_they_belong(family, monkeypatch):
  """On 4 devices each part is read once, and nothing else is."""
  source = REFERENCES / family / "checkpoint"
  whole = load(source)
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
  read = []
  real = hf_weights.Checkpoint.read

  def spy(self, name, index):
    found = real(self, name, index)
    read.append(found.size)
    return found

  monkeypatch.setattr(hf_weights.Checkpoint, "read", spy)
  parts = hf_checkpoint.load(source, mesh=mesh, storage=Storage("float32"))
  assert sum(read) == params_lib.count(whole.frozen)
  for path, leaf in params_lib.flatten(parts.frozen).items():
    expected = sharding.spec_for(path, leaf.ndim)
    assert leaf.sharding == jax.sharding.NamedSharding(mesh, expected), path
  kernel = parts.frozen["layers"]["attention"]["q"]["kernel"]
  assert kernel.addressable_shards[0].data.size * 4 == kernel.size
  jax.tree.map(np.testing.assert_array_equal, whole.frozen, parts.frozen)


ROLES = {"policy": "adapter", "reward": "reward_adapter"}


def read_pair(family, role):
  """(base, adapter) of a family's references."""
  source = REFERENCES / family
  found = load(source / "checkpoint")
  return found, peft.load_adapter(source / ROLES[role], found.config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """All families, both roles, both forms, judged by PyTorch in one process."""
  root = tmp_path_factory.mktemp("exported")
  for family, role in itertools.product(torch_side.FAMILIES, ROLES):
    found, adapter = read_pair(family, role)
    target = root / f"{family}-{role}-adapter"
    target.mkdir()
    base = REFERENCES / family / "checkpoint"
    if role == "reward" and not nested(REFERENCES / family, role):
      base = REFERENCES / family / "reward_checkpoint"  # of the same weights
    peft.save_adapter(
      target,
      found.config,
      adapter.lora,
      adapter.adapter,
      base=str(base),
      head=adapter.head,
      nested=nested(REFERENCES / family, role),
    )
    target = root / f"{family}-{role}-merged"
    target.mkdir()
    hf_export.save_model(
      target,
      found.config,
      params_lib.merge(found.frozen, adapter.adapter, adapter.lora),
      hf_export.Stops((1,), None, 0),
      dtype="float32",
      shard_bytes=5_000,
      head=adapter.head,
    )
  run_torch("--judge", root)
  return root


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch and PEFT")
@pytest.mark.parametrize("family", torch_side.FAMILIES)
@pytest.mark.parametrize("form", ["adapter", "merged"])
@pytest.mark.parametrize("role", ROLES)
def test_exports_as_their_users_load_them(family, form, role, exported):
  """`from_pretrained` of transformers and PEFT; base + adapter is here."""
  found, adapter = read_pair(family, role)
  params = params_lib.combine(adapter.adapter, found.frozen) | (
    adapter.head or {}
  )
  measure = logits if role == "policy" else scores
  ours = measure(
    found.config,
    adapter.lora,
    params,
    *map(jnp.asarray, torch_side.batch(0)),
  )
  theirs = np.load(exported / f"{family}-{role}-{form}" / "judged.npy")
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
