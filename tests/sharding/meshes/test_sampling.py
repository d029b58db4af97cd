"""Sampling on meshes: the tokens of one device, and what moves for a token.

Whatever layout the base decodes in, a row draws with its own key: tokens are
the same, log-probs up to the rounding of sums in another order.
"""

import functools
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from perl_jax import params as params_lib
from perl_jax import roles, sampling, sharding
from perl_jax.models import kv_cache, quantization
from perl_jax.models.lora import LoraSpec
from perl_jax.sampling import SamplingSpec
from tests import toys
from tests.sharding.meshes import common

CONFIG = toys.config("tiny", vocab_size=64)
BACKBONE = roles.Backbone(CONFIG, LoraSpec(rank=2, alpha=2.0))
ROWS, PROMPT, RESPONSE = 16, 5, 7
LENGTHS = np.array([5, 1, 4, 3] * 4, np.int32)
SPEC = SamplingSpec(
  response_len=RESPONSE, stop_ids=(3, 4, 11, 17, 22, 40), pad_id=63
)
WAYS = {
  "decode": {},
  "train": {"layout": "train"},
  "group": {"group": 2},
  # A refill for each device, and one that is less.
  "slots": {"slots": 8, "refill": 8},
  "few": {"slots": 8, "refill": 2},
  "cut": {"top_k": 9, "top_p": 0.8},
  "merge": {"merge": True},
  "int8": {},
  "nf4": {},
}


@functools.cache
def trees(dtype="float32"):
  """(adapter, base) with every leaf drawn; the base as it is stored."""
  tree = toys.random_params(CONFIG, BACKBONE.lora)
  adapter, base = params_lib.partition(
    jax.tree.map(jax.numpy.asarray, tree), "lora"
  )
  leaves = params_lib.flatten(base)
  if dtype in quantization.QUANTIZED:
    leaves = {
      path: quantization.quantize(leaf, dtype)
      if path.endswith("/kernel")
      else leaf
      for path, leaf in leaves.items()
    }
  return adapter, params_lib.unflatten(leaves)


def prepared(way, mesh):
  """(sampler, its arguments) on a mesh."""
  spec = SamplingSpec(**(vars(SPEC) | WAYS[way]))
  sampler = sampling.make_sampler(BACKBONE, spec)

  def sample(adapter, base, *args):
    return sampler(params_lib.combine(adapter, base), *args)

  placed = (sharding.place(mesh, tree) for tree in trees(way))
  batch = sharding.place_batch(
    mesh,
    (
      toys.random_tokens(1, ROWS, PROMPT, vocab=64),
      LENGTHS,
      np.arange(ROWS, dtype=np.int32),
    ),
  )
  return jax.jit(sample), (*placed, *batch, jax.random.key(5))


@functools.cache
def on_one_device(way):
  mesh = common.make_mesh("one")
  with jax.set_mesh(mesh):
    sample, args = prepared(way, mesh)
    return jax.device_get(sample(*args))


QUICK = {("decode", "all"), ("few", "fsdp")}


@pytest.mark.parametrize(
  ("way", "mesh"),
  [
    pytest.param(
      way,
      mesh,
      marks=[] if (way, mesh) in QUICK else pytest.mark.slow,
      id=f"{way}-{mesh}",
    )
    for way in WAYS
    for mesh in ("data", "fsdp", "all")
  ],
)
def test_samples_are_those_of_one_device(way, mesh, capfd):
  expected = on_one_device(way)
  lengths = expected.mask.sum(axis=1)
  assert expected.stopped.any() and not expected.stopped.all()
  assert len(set(lengths)) > 3
  common.complaints(capfd)
  mesh = common.make_mesh(mesh)
  with jax.set_mesh(mesh):
    sample, args = prepared(way, mesh)
    found = sample(*args)
  assert common.complaints(capfd) == []
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.mask, expected.mask)
  np.testing.assert_array_equal(found.stopped, expected.stopped)
  assert int(found.steps) == int(expected.steps)
  np.testing.assert_allclose(
    found.logprobs, expected.logprobs, rtol=2e-5, atol=2e-5
  )


def moved_for_a_token(text):
  """Elements of each array that devices gather or add up while decoding."""
  found = []
  for line in text.splitlines():
    match = re.search(r"= (.*) all-(gather|reduce)\(", line)
    # The prefill's are outside the loop over tokens.
    if match and 'op_name="jit(sample)/while/body/' in line:
      shapes = re.findall(r"\w+\[([\d,]+)\]", match[1])
      found += [math.prod(map(int, shape.split(","))) for shape in shapes]
  return found


def compiled(way, mesh):
  mesh = common.make_mesh(mesh)
  with jax.set_mesh(mesh):
    sample, args = prepared(way, mesh)
    return sample.lower(*args).compile().as_text()


def test_no_kernel_is_gathered_for_a_token():
  """In the layout of training all are; the least of them has 512 elements."""
  kernel = CONFIG.width * CONFIG.num_kv_heads * CONFIG.head_dim
  assert kernel == 512 >= ROWS * CONFIG.width
  train = moved_for_a_token(compiled("train", "fsdp"))
  assert sum(size >= kernel for size in train) >= 7
  assert CONFIG.vocab_size * CONFIG.width in train
  for mesh in ("fsdp", "all"):
    decode = moved_for_a_token(compiled("decode", mesh))
    # Rows of the model's width, at most: nothing that a kernel widens.
    assert decode and all(size <= kernel for size in decode), decode


@pytest.mark.parametrize(
  ("mesh", "spec", "part"),
  [
    ("data", P(None, ("data", "fsdp")), (2, 2, 2, 12, 8)),
    ("fsdp", P(None, ("data", "fsdp")), (2, 2, 2, 12, 8)),
    ("all", P(None, ("data", "fsdp"), "tensor"), (2, 4, 1, 12, 8)),
  ],
)
def test_the_cache_is_cut_by_rows_and_heads(mesh, spec, part):
  """Where it is made; and the whole is nowhere in the compiled program."""
  mesh_name, mesh = mesh, common.make_mesh(mesh)
  slots = PROMPT + RESPONSE
  with jax.set_mesh(mesh):
    cache = jax.jit(lambda: kv_cache.init_cache(CONFIG, ROWS, slots))()
  for array in (cache.keys, cache.values):
    wanted = jax.sharding.NamedSharding(mesh, spec)
    assert array.sharding.is_equivalent_to(wanted, array.ndim)
    assert {s.data.shape for s in array.addressable_shards} == {part}
  if mesh_name == "all":
    text = compiled("decode", mesh_name)
    assert f"f32[{','.join(map(str, part))}]" in text
    assert f"f32[2,{ROWS},2,{slots},8]" not in text


def test_heads_and_rows_that_do_not_divide_are_on_all_devices():
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
  with jax.set_mesh(mesh):
    cache = jax.jit(lambda: kv_cache.init_cache(CONFIG, 3, 4))()
  assert cache.keys.sharding.is_fully_replicated


@pytest.mark.parametrize(
  ("path", "shape", "decode"),
  [
    ("embedding", (64, 32), P(("tensor", "fsdp"), None)),
    ("lm_head", (32, 64), P(None, ("tensor", "fsdp"))),
    ("layers/mlp/up/kernel", (2, 32, 64), P(None, None, ("tensor", "fsdp"))),
    ("layers/mlp/down/kernel", (2, 64, 32), P(None, ("tensor", "fsdp"), None)),
    ("layers/mlp/down/kernel/scale", (2, 4, 32), P(None, None, None)),
    ("layers/attention/q/bias", (2, 32), P(None, ("tensor", "fsdp"))),
    ("layers/attention/q/lora_b", (2, 2, 32), P()),
    # 12 columns do not divide by 8.
    ("layers/attention/k/kernel", (2, 32, 12), P(None, "fsdp", "tensor")),
  ],
)
def test_layouts_of_a_leaf(path, shape, decode):
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  with jax.set_mesh(mesh):
    assert sharding.spec_in(sharding.DECODE, path, shape) == decode
    train = sharding.spec_in(sharding.TRAIN, path, shape)
  rule = sharding.spec_for(path, len(shape))
  whole = jax.sharding.NamedSharding(mesh, rule).shard_shape(shape)
  assert jax.sharding.NamedSharding(mesh, train).shard_shape(shape) == whole


def test_unknown_layout_is_refused():
  with pytest.raises(ValueError, match="layout='fsdp': choose one of auto"):
    SamplingSpec(response_len=1, stop_ids=(), layout="fsdp")
