"""The gradient of an output head that is trained with bfloat16 states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles
from perl_jax.models.lora import LoraSpec
from perl_jax.roles import outputs
from tests import toys

BATCH, TIME = 512, 128  # a row holds one token of each of 128 chunks
CONFIG = toys.config("tiny")
BACKBONE = roles.Backbone(CONFIG, LoraSpec())


def drawn(seed):
  """(states of the tokens and of the one before them, head `[D, V]`)."""
  rng = np.random.default_rng(seed)
  shape = BATCH, 1 + TIME, CONFIG.width
  hidden = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
  head = rng.normal(size=(CONFIG.width, CONFIG.vocab_size)) / 8
  return hidden, jnp.asarray(head, jnp.float32)


def params_of(head):
  return {"embedding": head.T} if CONFIG.tied_head else {"lm_head": head}


def sequence():
  tokens = toys.random_tokens(7, BATCH, 1 + TIME)
  one = np.ones_like(tokens)
  return roles.Sequence(tokens, np.cumsum(one, axis=1) - 1, one)


def log_softmax(hidden, head):
  """In float64, of what the products are given: `[B * T, V]`, and states."""
  states = np.float64(hidden[:, :-1]).reshape(-1, CONFIG.width)
  logits = states @ np.float64(head.astype(jnp.bfloat16))
  largest = logits.max(axis=1, keepdims=True)
  total = np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
  return states, logits - largest - total


def error_of(found, expected):
  assert found.dtype == jnp.float32
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("wide", [False, True])
def test_gradient_of_logprobs_is_summed_in_float32(monkeypatch, wide):
  """Over chunks of time, and in pieces of the vocabulary."""
  hidden, head = drawn(0)
  if wide:
    pieces = {"vocab_chunk": 8, "vocab_shards": 1}
    monkeypatch.setattr(outputs, "head_pieces", lambda *args: pieces)

  def total(head):
    scores = roles.response_logprobs(
      BACKBONE, params_of(head), sequence(), response_len=TIME,
      temperature=1.0, hidden=hidden,
    )  # fmt: skip
    return jnp.sum(scores.logprobs)

  states, logprobs = log_softmax(hidden, head)
  slopes = -np.exp(logprobs)
  slopes[np.arange(len(slopes)), sequence().tokens[:, 1:].reshape(-1)] += 1
  found = jax.jit(jax.grad(total))(head)
  # Each part is rounded to bfloat16 once; a sum in it would be 1 % off.
  assert error_of(found, states.T @ slopes) < 0.003


def test_gradient_of_the_exact_kl_is_summed_in_float32(monkeypatch):
  hidden, head = drawn(1)
  _, anchor = drawn(2)
  monkeypatch.setattr(outputs, "hidden_states", lambda *a, **k: hidden)

  def total(head):
    found = roles.response_kl(
      BACKBONE, params_of(head), params_of(anchor), sequence(),
      response_len=TIME, temperature=1.0,
    )  # fmt: skip
    return jnp.sum(found)

  states, logprobs = log_softmax(hidden, head)
  above = logprobs - log_softmax(hidden, anchor)[1]
  kl = np.sum(np.exp(logprobs) * above, axis=1, keepdims=True)
  found = jax.jit(jax.grad(total))(head)
  slopes = np.exp(logprobs) * (above - kl)
  assert error_of(found, states.T @ slopes) < 0.003


def test_a_frozen_head_is_not_kept_in_two_dtypes_for_each_chunk():
  """LoRA on a float32 base, against one that is bfloat16 already."""
  hidden, head = drawn(3)

  def total(hidden, head):
    scores = roles.response_logprobs(
      BACKBONE, params_of(head), sequence(), response_len=TIME,
      temperature=1.0, hidden=hidden,
    )  # fmt: skip
    return jnp.sum(scores.logprobs)

  def temporary(head):
    compiled = jax.jit(jax.grad(total)).lower(hidden, head).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  copies = temporary(head) - temporary(head.astype(jnp.bfloat16))
  assert copies <= 2 * head.size * head.dtype.itemsize
