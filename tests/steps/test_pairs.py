"""Pairs whose prompt is computed once: as if each side had been alone."""

import functools

import jax
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, steps
from perl_jax.data.batches.preferences import PreferenceBatch
from perl_jax.models.lora import LoraSpec
from perl_jax.steps import reward as reward_lib
from tests import toys

SPEC = LoraSpec(rank=2, alpha=2.0)
WIDTH, RESPONSE = 10, 4
PROMPTS = np.array([6, 1, 3, 5, 6, 2], np.int32)

# Full rows, single tokens, sides of different length, and one that is empty.
CHOSEN = np.array([4, 1, 4, 2, 3, 0], np.int32)
REJECTED = np.array([4, 4, 1, 2, 1, 3], np.int32)
FLOAT32 = dict(rtol=2e-5, atol=2e-5)


def pairs():
  """Rows of tokens; what lies behind a response is drawn too."""
  chosen, rejected = (
    toys.random_tokens(seed, len(PROMPTS), WIDTH) for seed in (1, 2)
  )
  inside = np.arange(WIDTH) < PROMPTS[:, None]
  return PreferenceBatch(
    chosen,
    PROMPTS + CHOSEN,
    np.where(inside, chosen, rejected),
    PROMPTS + REJECTED,
    PROMPTS,
    np.ones(len(PROMPTS), bool),
    np.arange(len(PROMPTS), dtype=np.int32),
  )


def role(config, likelihood):
  tree = toys.random_params(config, SPEC, head=True, seed=3)
  if likelihood:
    tree[params_lib.HEAD]["likelihood"] = np.array([0.7, -1.3], np.float32)
  return jax.tree.map(jax.numpy.asarray, params_lib.partition(tree, "lora"))


def alone(backbone, params, batch, closing=0):
  """Scores of each side in rows of its own."""
  sides = (
    (batch.chosen_tokens, batch.chosen_lengths),
    (batch.rejected_tokens, batch.rejected_lengths),
  )
  return jax.numpy.concatenate(
    [
      steps.reward_scores(
        backbone,
        params,
        *side,
        batch.prompt_lengths,
        max_response=RESPONSE,
        closing=closing,
      )
      for side in sides
    ]
  )


def together(backbone, params, batch, closing=0):
  return reward_lib.pair_scores(
    backbone, params, batch, max_response=RESPONSE, closing=closing
  )


@pytest.mark.parametrize("family", ["llama_tiny", "gemma3_tiny"])
@pytest.mark.parametrize("likelihood", [False, True])
def test_scores_and_gradients_are_those_of_each_side_alone(family, likelihood):
  backbone = roles.Backbone(toys.config(family), SPEC)
  trainable, frozen = role(backbone.config, likelihood)
  batch = pairs()
  weights = np.random.default_rng(4).normal(size=2 * len(PROMPTS))

  def weighed(score, trainable):
    params = params_lib.combine(trainable, frozen)
    scores = score(backbone, params, batch)
    return (weights * scores).sum(), scores

  (expected, found) = (
    jax.jit(jax.grad(functools.partial(weighed, score), has_aux=True))(
      trainable
    )
    for score in (alone, together)
  )
  assert np.std(expected[1]) > 0.1
  np.testing.assert_allclose(found[1], expected[1], **FLOAT32)
  for path, leaf in params_lib.flatten(expected[0]).items():
    scale = np.abs(leaf).max()
    assert scale > 0
    np.testing.assert_allclose(
      params_lib.flatten(found[0])[path] / scale,
      leaf / scale,
      err_msg=path,
      **FLOAT32,
    )


def test_a_closing_is_no_part_of_the_response():
  """What a head of likelihood reads ends one token earlier."""
  backbone = roles.Backbone(toys.config("llama_tiny"), SPEC)
  params = params_lib.combine(*role(backbone.config, True))
  apart, closed, whole = (
    jax.jit(functools.partial(score, backbone, closing=closing))(
      params, pairs()
    )
    for score, closing in ((alone, 1), (together, 1), (together, 0))
  )
  np.testing.assert_allclose(closed, apart, **FLOAT32)
  filled = np.concatenate([CHOSEN, REJECTED]) > 0
  assert np.abs(closed - whole)[filled].min() > 1e-4


def flops(score, backbone, params):
  """Floating-point operations that XLA counts in scoring all pairs."""
  lowered = jax.jit(functools.partial(score, backbone)).lower(params, pairs())
  return lowered.cost_analysis()["flops"]


def test_a_prompt_is_computed_once_where_that_saves():
  backbone = roles.Backbone(toys.config("tiny"), SPEC)
  params = params_lib.combine(*role(backbone.config, False))
  shared, apart = (
    flops(score, backbone, params) for score in (together, alone)
  )
  # 10 + 4 columns instead of 2 x 10; the attention of long rows costs more.
  assert 0.65 < shared / apart < 0.8
  wide = functools.partial(reward_lib.pair_scores, max_response=6)
  assert 0.95 < flops(wide, backbone, params) / apart < 1.05
