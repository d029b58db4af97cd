"""Responses to one prompt in evaluations: behind one copy of it, or apart."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, scoring
from perl_jax.planning import flops
from tests import toys
from tests.scored import ACROSS_PROGRAMS, BACKBONE, TEMPERATURE, roles_of

# Prompts, responses and their number: a long one is read once for all; short
# ones cost less than attention from each response to the others.
LONG, SHORT = (24, 4, 3), (2, 40, 8)
BATCH = 2


@functools.cache
def trees():
  """(trainable trees of a policy and of a reward model, base)."""
  asked, base = jax.tree.map(jnp.asarray, roles_of())
  return asked["policy"], params_lib.member(asked["reward"], 1), base


@functools.cache
def sampled(prompt_len, response_len, group):
  """(prompts, lengths, responses, mask), of all lengths down to 0 tokens."""
  lengths = np.array([prompt_len, 1], np.int32)
  columns = np.arange(prompt_len) >= prompt_len - lengths[:, None]
  prompts = np.where(columns, toys.random_tokens(70, BATCH, prompt_len), 0)
  count = np.arange(BATCH * group) * response_len // (BATCH * group - 1)
  mask = np.arange(response_len) < count[:, None]
  responses = toys.random_tokens(71, BATCH * group, response_len)
  return prompts, lengths, np.where(mask, responses, 0), mask


def apart(prompts, lengths, responses, mask):
  group = len(responses) // len(prompts)
  return (
    np.repeat(prompts, group, axis=0), np.repeat(lengths, group),
    responses, mask,
  )  # fmt: skip


def logprobs_and_scores():
  policy, reward, base = trees()
  logprobs = scoring.make_logprobs(BACKBONE, temperature=TEMPERATURE)
  scores = scoring.make_rewards(BACKBONE)
  return (
    jax.jit(lambda *args: logprobs(policy, base, *args)),
    jax.jit(lambda *args: scores(reward, base, *args)),
  )


def cost(function, args):
  return flops.matmul_flops(function.trace(*args).jaxpr)


@pytest.mark.parametrize("shape", [LONG, SHORT])
def test_responses_behind_one_prompt_are_measured_as_each_behind_its_own(shape):
  args = sampled(*shape)
  for function in logprobs_and_scores():
    found, expected = function(*args), function(*apart(*args))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, **ACROSS_PROGRAMS),
      found,
      expected,
    )


def test_a_long_prompt_is_read_once():
  prompt_len, response_len, group = LONG
  args = sampled(*LONG)
  for function in logprobs_and_scores():
    # All but attention and the heads go by columns.
    share = (prompt_len + group * response_len) / (
      group * (prompt_len + response_len)
    )
    whole = cost(function, apart(*args))
    assert cost(function, args) < (1 + share) / 2 * whole


def test_responses_that_would_cost_more_together_are_read_apart():
  args = sampled(*SHORT)
  for function in logprobs_and_scores():
    assert cost(function, args) == cost(function, apart(*args))


def test_an_ensemble_reads_a_prompt_once_for_each_member():
  asked, base = jax.tree.map(jnp.asarray, roles_of())
  scores = scoring.make_rewards(BACKBONE, members=2)
  function = jax.jit(lambda *args: scores(asked["reward"], base, *args))
  args = sampled(*LONG)
  assert jax.eval_shape(function, *args).shape == (2, BATCH * LONG[2])
  assert cost(function, args) < cost(function, apart(*args))


def test_a_kernel_that_knows_no_groups_keeps_responses_apart():
  """Splash is the kernel of long rows on a TPU."""
  for kernel, group in (("xla", LONG[2]), ("splash", 1)):
    config = dataclasses.replace(BACKBONE.config, attention=kernel)
    rows = roles.shared_rows(config, *sampled(*LONG))
    assert rows.group == group
    shape = BATCH * LONG[2] // group, LONG[0] + group * LONG[1]
    assert rows.sequence.tokens.shape == shape
