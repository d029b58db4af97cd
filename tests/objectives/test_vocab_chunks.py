"""Scores from pieces of the vocabulary: the numbers, gradients and bytes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax.objectives import language_model, vocab_chunks
from tests.objectives.test_language_model import draw, score_slowly
from tests.objectives.test_language_model_memory import array_sizes

OPTIONS = dict(temperature=0.7, softcap=3.0, entropy=True, correct=True)
SAME = dict(rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnames=("vocab_chunk", "vocab_shards"))
def score(*arrays, **options):
  return language_model.token_logprobs(*arrays, **OPTIONS | options)


@pytest.mark.parametrize(
  ("size", "chunk", "shards", "found"),
  [
    (256_000, 8192, 1, (32, 8000)),
    (128_256, 8192, 1, (16, 8016)),
    (128_256, 8192, 4, (16, 2004)),
    (11, 4, 1, (3, 4)),  # one column of padding: 11 is prime
    (11, 100, 1, (1, 11)),
    (12, 5, 2, (3, 2)),
    (7, 1, 1, (7, 1)),
  ],
)
def test_pieces(size, chunk, shards, found):
  assert vocab_chunks.pieces(size, chunk, shards) == found
  assert found[0] * found[1] * shards >= size and found[1] * shards <= chunk


@pytest.mark.parametrize(("chunk", "shards"), [(0, 1), (3, 4)])
def test_pieces_without_a_column_are_refused(chunk, shards):
  with pytest.raises(ValueError, match=f"vocab_chunk={chunk} must be at least"):
    vocab_chunks.pieces(11, chunk, shards)


@pytest.mark.parametrize(
  ("chunk", "shards"), [(1, 1), (4, 1), (6, 1), (100, 1), (4, 2), (6, 3)]
)
def test_equals_slow_loop(chunk, shards):
  # 11 columns: most cuts leave padding.
  for seed in range(3):
    arrays = draw(seed, 3, 7)
    found = score(*arrays, vocab_chunk=chunk, vocab_shards=shards)
    logprobs, entropy, correct = score_slowly(*arrays, 0.7, 3.0)
    np.testing.assert_allclose(found.logprobs, logprobs, **SAME)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.correct, correct)
    assert 0 < np.sum(correct) < correct.size
  assert found.logprobs.dtype == found.entropy.dtype == jnp.float32


def test_what_is_not_asked_for_is_not_made():
  found = language_model.token_logprobs(*draw(0, 2, 3), vocab_chunk=4)
  assert found.entropy is None and found.correct is None


@pytest.mark.parametrize("shards", [1, 2])
def test_gradients_equal_those_of_time_chunks(shards):
  hidden, kernel, targets = draw(0, 3, 8)
  weights = np.random.default_rng(1).normal(size=(3, 8))

  def total(h, w, **options):
    scores = language_model.token_logprobs(h, w, targets, **OPTIONS | options)
    return jnp.sum(scores.logprobs * weights + scores.entropy**2)

  def gradients(**options):
    fn = functools.partial(total, **options)
    return jax.jit(jax.value_and_grad(fn, argnums=(0, 1)))(hidden, kernel)

  value, expected = gradients()
  again, found = gradients(vocab_chunk=4, vocab_shards=shards)
  np.testing.assert_allclose(again, value, rtol=1e-5)
  for mine, theirs in zip(found, expected):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gradient_of_states_is_summed_in_float32():
  """W_y - mean of W over 1024 pieces: 8 bits would stop adding half-way."""
  rng = np.random.default_rng(0)
  hidden = jnp.zeros((1, 1, 8), jnp.bfloat16)
  kernel = jnp.asarray(1.0 + 0.1 * rng.random((8, 1024)), jnp.bfloat16)
  kernel = kernel.at[:, 3].set(3.0)

  def total(h):
    found = language_model.token_logprobs(
      h, kernel, np.array([[3]]), vocab_chunk=1
    )
    return jnp.sum(found.logprobs)

  gradient = jax.jit(jax.grad(total))(hidden)
  exact = np.float64(kernel)
  exact = exact[:, 3] - exact.mean(axis=1)
  # Each piece and the sum are rounded to bfloat16 once.
  np.testing.assert_allclose(np.float64(gradient[0, 0]), exact, rtol=2**-8)


def test_equal_logits_count_as_the_first():
  """Ties within a piece and across; shards take ids out of order."""
  hidden, kernel = jnp.zeros((1, 6, 1)), jnp.ones((1, 6))
  targets = jnp.arange(6)[None]
  for chunk, shards in ((1, 1), (2, 1), (6, 1), (2, 2)):
    found = language_model.token_logprobs(
      hidden,
      kernel,
      targets,
      vocab_chunk=chunk,
      vocab_shards=shards,
      correct=True,
    )
    np.testing.assert_array_equal(found.correct[0], [True] + [False] * 5)


@pytest.mark.parametrize("target", [-100, -1, 11, 2**30])
def test_target_outside_the_vocabulary_is_nan_until_masked(target):
  hidden, kernel, targets = draw(4, 2, 3)
  targets[1, 2] = target
  mask = np.arange(6).reshape(2, 3) < 5

  def total(h, w, mask):
    found = language_model.token_logprobs(h, w, targets, vocab_chunk=4)
    return jnp.sum(jnp.where(mask, found.logprobs, 0.0))

  step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  assert np.isnan(step(hidden, kernel, np.ones((2, 3), bool))[0])
  value, gradients = step(hidden, kernel, mask)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in gradients)
  assert np.all(gradients[0][1, 2] == 0.0)


def test_large_logits_stay_finite():
  found = language_model.token_logprobs(
    jnp.full((1, 1, 1), 1e4),
    jnp.array([[1.0, -1.0, 0.5]]),
    jnp.array([[1]]),
    vocab_chunk=1,
    entropy=True,
  )
  np.testing.assert_allclose(found.logprobs, [[-2e4]])
  np.testing.assert_allclose(found.entropy, [[0.0]])


SHAPES = {"batch": 4, "time": 64, "width": 8, "vocab": 4096}


def total(h, w, targets, vocab_chunk=256):
  found = language_model.token_logprobs(
    h, w, targets, vocab_chunk=vocab_chunk, **OPTIONS
  )
  return jnp.sum(found.logprobs + found.entropy + found.correct)


@pytest.mark.parametrize("backward", [False, True])
def test_no_array_of_all_logits_is_traced(backward):
  arrays = draw(0, **SHAPES)
  fn = jax.value_and_grad(total, argnums=(0, 1)) if backward else total
  sizes = list(array_sizes(jax.make_jaxpr(fn)(*arrays).jaxpr))
  assert max(sizes) == 4 * 64 * 256


def test_no_memory_for_all_logits_is_compiled():
  arrays = draw(0, **SHAPES)

  def temporary(chunk):
    fn = functools.partial(total, vocab_chunk=chunk)
    step = jax.jit(jax.value_and_grad(fn, argnums=(0, 1)))
    analysis = step.lower(*arrays).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  all_logits_bytes = 4 * 64 * 4096 * 4
  assert temporary(256) < all_logits_bytes / 2
  assert temporary(4096) >= all_logits_bytes


def test_frozen_head_costs_no_gradient_array():
  hidden, kernel, targets = draw(0, 2, 4, width=64, vocab=512)

  def made(fn, *arguments):
    """How many arrays of the head's size, views included."""
    sizes = array_sizes(jax.make_jaxpr(fn)(*arguments).jaxpr)
    return sum(size == 64 * 512 for size in sizes)

  def alone(h, w=kernel):
    found = language_model.token_logprobs(h, w, targets, vocab_chunk=64)
    return jnp.sum(found.logprobs)

  assert made(jax.grad(alone), hidden) == made(alone, hidden)
  trained = made(jax.grad(alone, argnums=(0, 1)), hidden, kernel)
  assert trained > made(alone, hidden, kernel)


def gathered(text):
  """Shapes of what is gathered, from a compiled program."""
  lines = [line for line in text.splitlines() if "all-gather(" in line]
  return [line.split(" = ")[1].split("{")[0] for line in lines]


@pytest.mark.parametrize("tied", [False, True])
def test_sharded_head_is_gathered_in_pieces_only(tied):
  """As `sharding.RULES` lay head and batch out, fsdp 4 and tensor 2."""
  devices = np.array(jax.devices()).reshape(1, 4, 2)
  mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
  hidden, kernel, targets = draw(0, 8, 6, width=16, vocab=1024)
  spec = P("tensor", "fsdp") if tied else P("fsdp", "tensor")
  rows = NamedSharding(mesh, P(("data", "fsdp")))

  def loss(h, w, t):
    found = language_model.token_logprobs(
      h, w.T if tied else w, t, vocab_chunk=128, vocab_shards=2
    )
    return -jnp.mean(found.logprobs)

  given = hidden, kernel.T if tied else kernel, targets
  step = jax.jit(
    jax.value_and_grad(loss),
    in_shardings=(rows, NamedSharding(mesh, spec), rows),
  )
  compiled = step.lower(*given).compile()
  found = gathered(compiled.as_text())
  # 64 columns of a piece on each of two devices; nothing along V.
  sizes = [np.prod(eval(shape.split("[")[1][:-1] + ",")) for shape in found]
  assert sizes and max(sizes) <= 16 * 64, found
  value, gradient = step(*given)
  alone, alone_gradient = jax.jit(jax.value_and_grad(loss))(*given)
  np.testing.assert_allclose(value, alone, rtol=1e-6)
  np.testing.assert_allclose(gradient, alone_gradient, rtol=1e-5, atol=1e-7)
