"""Partition, combine, merge and identity of parameter trees."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import model
from tests import toys
from tests.models import reference

SPEC = LoraSpec(rank=2, targets="all")


def tree(head=True, spec=SPEC, **overrides):
  return toys.random_params(toys.config(**overrides), spec, head=head)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for path, leaf in params_lib.flatten(expected).items():
    # The very leaves, not copies: a split must not cost memory.
    assert params_lib.flatten(found)[path] is leaf, path


def test_flatten_round_trip():
  whole = tree()
  leaves = params_lib.flatten(whole)
  assert list(leaves) == sorted(leaves)
  assert "layers/attention/q/lora_a" in leaves
  assert_same(params_lib.unflatten(leaves), whole)


def test_lora_partition_takes_adapters_and_the_head():
  whole = tree()
  trainable, frozen = params_lib.partition(whole, "lora")
  found = set(params_lib.flatten(trainable))
  rest = set(params_lib.flatten(frozen))
  assert found | rest == set(params_lib.flatten(whole))
  assert not found & rest
  assert {path.rsplit("/", 1)[-1] for path in found} == {
    "lora_a",
    "lora_b",
    "kernel",
    "bias",
  }
  assert {"head/kernel", "head/bias"} <= found
  assert len(found) == 2 * 7 + 2
  assert rest == set(params_lib.flatten(toys.shapes(toys.config())))
  assert_same(params_lib.combine(trainable, frozen), whole)


@pytest.mark.parametrize("head", [False, True])
def test_full_partition_takes_everything(head):
  whole = tree(head=head, spec=toys.NO_LORA)
  trainable, frozen = params_lib.partition(whole, "full")
  assert frozen == {}
  assert_same(trainable, whole)
  assert_same(params_lib.combine(trainable, frozen), whole)


@pytest.mark.parametrize(
  ("tuning", "spec", "message"),
  [
    ("loar", SPEC, r"tuning='loar': choose one of \('lora', 'full'\)"),
    ("full", SPEC, r"tuning='full' .* has adapters: \['layers/attention/k/lor"),
    ("lora", toys.NO_LORA, r"no adapter, so that nothing but a head"),
  ],
)
def test_partitions_that_make_no_sense_are_refused(tuning, spec, message):
  with pytest.raises(ValueError, match=message):
    params_lib.partition(tree(spec=spec), tuning)


def test_combine_refuses_a_leaf_on_both_sides():
  with pytest.raises(ValueError, match=r"alike: \['a/b'\]"):
    params_lib.combine({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_is_adapter_and_has_adapters():
  assert params_lib.is_adapter("layers/mlp/up/lora_b")
  assert not params_lib.is_adapter("layers/lora_a/kernel")
  assert params_lib.is_head("head/kernel")
  assert not params_lib.is_head("lm_head")
  assert params_lib.has_adapters(tree())
  assert not params_lib.has_adapters(tree(spec=toys.NO_LORA))


def test_count_and_bytes():
  mixed = {
    "a": np.zeros((3, 4), np.float32),
    "b": {"c": jnp.zeros((5,), jnp.bfloat16), "d": np.zeros((), np.float32)},
  }
  assert params_lib.count(mixed) == 12 + 5 + 1
  assert params_lib.nbytes(mixed) == 48 + 10 + 4
  shapes = jax.eval_shape(lambda: mixed)
  assert params_lib.nbytes(shapes) == 62


def test_adapters_of_the_default_preset_are_a_small_share():
  """The claim of the method, counted: rank 4 on attention of a 768 base."""
  cfg = toys.config("base", vocab_size=32_000)
  trainable, frozen = params_lib.partition(
    toys.shapes(cfg, LoraSpec(rank=4)), "lora"
  )
  assert params_lib.count(trainable) == 12 * 4 * 4 * 2 * 768
  assert params_lib.nbytes(trainable) / params_lib.nbytes(frozen) < 0.01


class TestFingerprint:
  LEAF = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)

  def of(self, leaf, path="a"):
    return params_lib.fingerprint({path: {"kernel": leaf}})

  def test_same_bits_same_fingerprint(self):
    plain = self.of(self.LEAF)
    assert len(plain) == 64
    assert self.of(jnp.asarray(self.LEAF)) == plain
    assert self.of(np.asfortranarray(self.LEAF)) == plain
    two, again = {"a": self.LEAF, "b": self.LEAF + 1}, {"b": self.LEAF + 1}
    assert params_lib.fingerprint(again | {"a": self.LEAF}) == (
      params_lib.fingerprint(two)
    )

  @pytest.mark.parametrize("piece", [1, 40, 100])
  def test_large_leaves_are_read_in_pieces(self, monkeypatch, piece):
    """The digest is that of all bytes, as it is in workdirs."""
    leaf = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    expected = hashlib.sha256(b"a/kernel:(5, 2, 3):float32\n" + leaf.tobytes())
    monkeypatch.setattr(params_lib, "_PIECE", piece)
    sizes = []

    def to_host(array):
      sizes.append(array.nbytes)
      return np.asarray(array)

    for array in (leaf, np.asfortranarray(leaf), jnp.asarray(leaf)):
      sizes.clear()
      found = params_lib.fingerprint({"a": {"kernel": array}}, to_host)
      assert found == expected.hexdigest()
      assert sum(sizes) == leaf.nbytes
      assert max(sizes) <= max(piece, leaf[0].nbytes)

  def test_one_bit_changes_it(self):
    bits = self.LEAF.copy()
    bits.view(np.uint32)[1, 0] ^= 1
    assert self.of(bits) != self.of(self.LEAF)

  def test_the_sign_of_zero_changes_it(self):
    assert self.of(np.float32([-0.0])) != self.of(np.float32([0.0]))

  def test_dtype_path_and_order_change_it(self):
    plain = self.of(self.LEAF)
    assert self.of(self.LEAF.view(np.int32)) != plain
    assert self.of(self.LEAF, path="b") != plain
    assert self.of(self.LEAF.T) != plain
    assert params_lib.fingerprint({}) != plain

  @pytest.mark.parametrize(
    ("one", "other"), [((4,), (2, 2)), ((), (1,)), ((1,), (1, 1))]
  )
  def test_shape_changes_it(self, one, other):
    """Also from a scalar to a vector of one."""
    assert self.of(np.ones(one, np.float32)) != (
      self.of(np.ones(other, np.float32))
    )


def test_require_same_leaves_lists_every_difference():
  expected = {"a": np.zeros(2), "b": {"c": np.zeros((2, 3)), "d": np.zeros(1)}}
  found = {"b": {"c": np.zeros((3, 2)), "d": np.zeros(1)}, "e": np.zeros(1)}
  params_lib.require_same_leaves(expected, expected, "The tree")
  with pytest.raises(ValueError) as error:
    params_lib.require_same_leaves(expected, found, "The checkpoint")
  message = str(error.value)
  assert message.startswith("The checkpoint does not fit.")
  assert "missing: ['a']" in message
  assert "extra: ['e']" in message
  assert "shapes: ['b/c: (3, 2), expected (2, 3)']" in message


@pytest.mark.parametrize("rslora", [False, True])
def test_merge_is_the_formula(rslora):
  spec = LoraSpec(rank=4, alpha=6.0, rslora=rslora, targets="all")
  trainable, base = params_lib.partition(tree(spec=spec), "lora")
  merged = params_lib.merge(base, trainable, spec)
  params_lib.require_same_leaves(base, merged, "merged")
  leaves, adapters = (
    params_lib.flatten(reference.float64(t)) for t in (base, trainable)
  )
  for path, found in params_lib.flatten(merged).items():
    expected = leaves[path]
    stem = path.removesuffix("kernel")
    if stem + "lora_a" in adapters:
      product = adapters[stem + "lora_a"] @ adapters[stem + "lora_b"]
      expected = expected + 6.0 / (2.0 if rslora else 4.0) * product
      assert np.abs(found - leaves[path]).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_merge_of_a_bfloat16_base_rounds_once():
  """Computed in float32, then rounded to the kernel's dtype."""
  trainable, base = params_lib.partition(tree(), "lora")
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), base)
  merged = params_lib.merge(half, trainable, SPEC)
  whole = params_lib.merge(
    jax.tree.map(lambda x: x.astype(jnp.float32), half), trainable, SPEC
  )
  for path, leaf in params_lib.flatten(merged).items():
    assert leaf.dtype == jnp.bfloat16
    rounded = params_lib.flatten(whole)[path].astype(jnp.bfloat16)
    np.testing.assert_array_equal(leaf, rounded, err_msg=path)


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merge_into_a_dtype_is_that_of_the_float32_model(stored, dtype):
  """The whole model in float32, merged, and then cast: the same bits."""
  trainable, base = params_lib.partition(tree(), "lora")
  base = model.stored(jax.tree.map(jnp.asarray, base), stored)
  whole = params_lib.merge(params_lib.widen(base, "float32"), trainable, SPEC)
  merged = params_lib.flatten(params_lib.merge(base, trainable, SPEC, dtype))
  expected = params_lib.flatten(params_lib.widen(whole, dtype))
  assert merged.keys() == expected.keys()
  for path, leaf in merged.items():
    assert leaf.dtype == dtype
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_merge_changes_nothing_in_place():
  trainable, base = params_lib.partition(tree(), "lora")
  before = params_lib.fingerprint(base)
  merged = params_lib.merge(base, trainable, SPEC)
  assert params_lib.fingerprint(base) == before
  assert params_lib.fingerprint(merged) != before


def test_merged_model_equals_unmerged():
  """x W + s x A B against x (W + s A B): float32 rounding over two layers."""
  cfg = toys.config("gemma2_tiny", qkv_bias=True)
  backbone = roles.Backbone(cfg, SPEC)
  trainable, base = params_lib.partition(toys.random_params(cfg, SPEC), "lora")
  run = jax.jit(
    lambda params, sequence: roles.hidden_states(backbone, params, sequence)
  )
  sequence = roles.right_padded(toys.random_tokens(0, 2, 7), jnp.array([7, 7]))
  plain = run(base, sequence)
  unmerged = run(params_lib.combine(trainable, base), sequence)
  merged = run(params_lib.merge(base, trainable, SPEC), sequence)
  np.testing.assert_allclose(merged, unmerged, rtol=5e-5, atol=5e-5)
  assert np.abs(unmerged - plain).max() > 0.1
