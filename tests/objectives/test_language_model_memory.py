"""What token_logprobs costs: no array of all logits, no moved batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import language_model


def draw(batch, time, width, vocab):
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(batch, time, width)).astype(np.float32)
  kernel = rng.normal(size=(width, vocab)).astype(np.float32)
  targets = rng.integers(0, vocab, (batch, time)).astype(np.int32)
  return hidden, kernel, targets


def array_sizes(jaxpr):
  """Sizes of all arrays that a jaxpr makes, inner jaxprs included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield int(np.prod(variable.aval.shape))
    for value in equation.params.values():
      for item in value if isinstance(value, (tuple, list)) else [value]:
        inner = getattr(item, "jaxpr", item)
        if hasattr(inner, "eqns"):
          yield from array_sizes(inner)


def all_scores(hidden, kernel, targets):
  scores = language_model.token_logprobs(
    hidden,
    kernel,
    targets,
    chunk_size=16,
    softcap=5.0,
    entropy=True,
    correct=True,
  )
  return jnp.sum(
    scores.logprobs + scores.entropy + scores.correct.astype(jnp.float32)
  )


def at_once(hidden, kernel, targets):
  table = jax.nn.log_softmax(hidden @ kernel)
  return jnp.sum(jnp.take_along_axis(table, targets[..., None], -1))


MEMORY_SHAPES = {"batch": 4, "time": 64, "width": 8, "vocab": 4096}


@pytest.mark.parametrize("backward", [False, True])
def test_no_array_of_all_logits_is_traced(backward):
  arrays = draw(**MEMORY_SHAPES)
  all_logits = 4 * 64 * 4096

  def largest(fn):
    fn = jax.value_and_grad(fn, argnums=(0, 1)) if backward else fn
    return max(array_sizes(jax.make_jaxpr(fn)(*arrays).jaxpr))

  # 16 tokens a chunk; hidden states, head and its gradient are smaller.
  assert largest(all_scores) == 16 * 4096
  assert largest(at_once) >= all_logits  # the ruler measures


def test_no_memory_for_all_logits_is_compiled():
  arrays = draw(**MEMORY_SHAPES)
  all_logits_bytes = 4 * 64 * 4096 * 4

  def temporary(fn):
    step = jax.value_and_grad(fn, argnums=(0, 1))
    compiled = jax.jit(step).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(all_scores) < all_logits_bytes / 2
  assert temporary(at_once) >= all_logits_bytes


def test_frozen_head_costs_no_gradient_array():
  """LoRA trains no head, so nothing of its size may be accumulated."""
  hidden, kernel, targets = draw(batch=2, time=4, width=64, vocab=512)

  def total(h):
    scores = language_model.token_logprobs(h, kernel, targets, chunk_size=2)
    return jnp.sum(scores.logprobs)

  sizes = list(array_sizes(jax.make_jaxpr(jax.grad(total))(hidden).jaxpr))
  made = [size for size in sizes if size == 64 * 512]
  # The head's transpose in the backward pass is a view; no sum of its size.
  assert len(made) <= 1


def test_sharded_batch_is_not_gathered():
  devices = jax.devices()
  if len(devices) < 2:
    pytest.skip("needs several devices")
  mesh = jax.sharding.Mesh(np.array(devices), ("data",))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  hidden, kernel, targets = draw(len(devices), 12, 5, 11)

  def loss(h, w, t):
    scores = language_model.token_logprobs(h, w, t, chunk_size=3 * len(devices))
    return -jnp.mean(scores.logprobs)

  step = jax.jit(jax.value_and_grad(loss), in_shardings=(rows, whole, rows))
  text = step.lower(hidden, kernel, targets).compile().as_text()
  assert "all-reduce" in text  # the mean: it did run on several devices
  for collective in ("all-gather", "all-to-all", "collective-permute"):
    assert collective not in text
  value, gradient = step(hidden, kernel, targets)
  alone, alone_gradient = jax.jit(jax.value_and_grad(loss))(
    hidden, kernel, targets
  )
  np.testing.assert_allclose(value, alone, rtol=1e-6)
  np.testing.assert_allclose(gradient, alone_gradient, rtol=1e-5, atol=1e-7)
