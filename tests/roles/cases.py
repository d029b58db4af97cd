"""Sequences of several lengths, and what the NumPy model says of each alone.

The reference sees a sequence without padding, so that every test that compares
with it is also one of alignment and of padding.
"""

import functools

import jax
import numpy as np

from perl_jax import roles
from perl_jax.models.lora import LoraSpec
from tests import toys
from tests.models import reference

# Log-probs down to -15; float32 against float64.
AGAINST_NUMPY = dict(rtol=2e-5, atol=3e-5)
REASSOCIATED = dict(rtol=1e-5, atol=1e-5)
TEMPERATURE = 0.7
CONFIG = toys.config("gemma2_tiny")  # soft-caps, window, everything
SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(CONFIG, SPEC)
PARAMS = toys.random_params(CONFIG, SPEC, head=True)
PROMPT_LENGTHS = np.array([5, 3, 1, 4], np.int32)
RESPONSE_LENGTHS = np.array([6, 2, 4, 1], np.int32)
PROMPT_LEN, RESPONSE_LEN = 5, 6


def pieces():
  for row, lengths in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
    ids = toys.random_tokens(20 + row, sum(lengths))
    yield row, ids[: lengths[0]], ids[lengths[0] :]


def batch(fill=0):
  """(prompts, lengths, responses, mask) with `fill` in all padding."""
  rows = len(PROMPT_LENGTHS)
  prompts = np.full((rows, PROMPT_LEN), fill, np.int32)
  responses = np.full((rows, RESPONSE_LEN), fill, np.int32)
  for row, prompt, response in pieces():
    prompts[row, PROMPT_LEN - len(prompt) :] = prompt
    responses[row, : len(response)] = response
  mask = np.arange(RESPONSE_LEN) < RESPONSE_LENGTHS[:, None]
  return prompts, PROMPT_LENGTHS, responses, mask


def right_padded_batch(fill=0):
  """(tokens, lengths): the same sequences, from column 0 on."""
  lengths = PROMPT_LENGTHS + RESPONSE_LENGTHS
  tokens = np.full((len(lengths), PROMPT_LEN + RESPONSE_LEN), fill, np.int32)
  for row, prompt, response in pieces():
    tokens[row, : lengths[row]] = np.concatenate([prompt, response])
  return tokens, lengths


@functools.cache
def reference_of(row):
  """(tokens, states, logits) of one sequence, from NumPy."""
  _, prompt, response = list(pieces())[row]
  tokens = np.concatenate([prompt, response])
  return (
    tokens,
    reference.hidden_states(CONFIG, PARAMS, tokens, lora_scale=SPEC.scale),
    reference.logits(CONFIG, PARAMS, tokens, lora_scale=SPEC.scale),
  )


@jax.jit
def measure(params, prompts, lengths, responses, mask):
  sequence = roles.with_response(prompts, lengths, responses, mask)
  return roles.response_logprobs(
    BACKBONE,
    params,
    sequence,
    response_len=RESPONSE_LEN,
    temperature=TEMPERATURE,
    entropy=True,
  ), roles.response_values(
    BACKBONE, params, sequence, response_len=RESPONSE_LEN
  )


def target_scores(params, tokens, lengths, target_mask, *, max_targets):
  sequence = roles.right_padded(tokens, lengths)
  return jax.device_get(
    target_logprobs(
      BACKBONE, params, sequence, target_mask, max_targets=max_targets
    )
  )


target_logprobs = jax.jit(
  roles.target_logprobs, static_argnums=0, static_argnames="max_targets"
)


def some_targets(lengths):
  """Two tokens of three, never the first; the longest row has the most."""
  columns = np.arange(PROMPT_LEN + RESPONSE_LEN)
  return (columns % 3 > 0) & (columns < lengths[:, None])


def check_targets(params, found, kept, tokens, target_mask):
  """Compares with the log-probs of the token that follows, by a loop."""
  hits = 0
  for row, targets in enumerate(target_mask):
    ids = tokens[row, : PROMPT_LENGTHS[row] + RESPONSE_LENGTHS[row]]
    logits = reference.logits(CONFIG, params, ids, lora_scale=SPEC.scale)
    columns = np.flatnonzero(targets)
    assert np.flatnonzero(kept[row]).tolist() == list(range(len(columns)))
    for entry, t in enumerate(columns):
      expected = reference.log_softmax(logits[t - 1])[ids[t]]
      np.testing.assert_allclose(
        found.logprobs[row, entry], expected, **AGAINST_NUMPY
      )
      hit = bool(np.argmax(logits[t - 1]) == ids[t])
      assert bool(found.correct[row, entry]) == hit
      hits += hit
  return hits


@functools.cache
def measured(fill):
  return jax.device_get(measure(PARAMS, *batch(fill)))
