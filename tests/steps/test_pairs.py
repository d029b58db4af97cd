"""Responses that share rows and prompts: as if each had been alone."""

import functools

import jax
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.data.batches.packed_responses import Layout
from perl_jax.data.batches.preferences import EncodedPreference
from perl_jax.models.lora import LoraSpec
from perl_jax.roles import packed as packed_lib
from tests import padded, toys

SPEC = LoraSpec(rank=2, alpha=2.0)
WIDTH, RESPONSE = 10, 4
PROMPTS = [6, 1, 3, 5, 6, 2]

# Full rows, single tokens, sides of different length, and one that is empty.
CHOSEN, REJECTED = [4, 1, 4, 2, 3, 0], [4, 4, 1, 2, 1, 3]
PLAN = [[0, 5], [3, 1, 4], [], [2]]
FLOAT32 = dict(rtol=2e-5, atol=2e-5)


def pairs():
  prompts, chosen, rejected = (
    toys.random_tokens(seed, len(PROMPTS), WIDTH) for seed in (0, 1, 2)
  )
  return [
    EncodedPreference(
      [*prompts[i, :start], *chosen[i, : CHOSEN[i]]],
      [*prompts[i, :start], *rejected[i, : REJECTED[i]]],
      start,
      i,
    )
    for i, start in enumerate(PROMPTS)
  ]


def role(config, likelihood):
  tree = toys.random_params(config, SPEC, head=True, seed=3)
  if likelihood:
    tree[params_lib.HEAD]["likelihood"] = np.array([0.7, -1.3], np.float32)
  return jax.tree.map(jax.numpy.asarray, params_lib.partition(tree, "lora"))


def alone(backbone, params, closing=0):
  """Scores `[6, 2]` of each side in a padded row of its own."""
  rows = [
    (side, pair.prompt_length)
    for pair in pairs()
    for side in (pair.chosen, pair.rejected)
  ]
  tokens = np.array([side + [1] * (WIDTH - len(side)) for side, _ in rows])
  return padded.reward_scores(
    backbone,
    params,
    jax.numpy.asarray(tokens, "int32"),
    jax.numpy.array([len(side) for side, _ in rows], "int32"),
    jax.numpy.array([start for _, start in rows], "int32"),
    max_response=RESPONSE,
    closing=closing,
  ).reshape(-1, 2)


def together(backbone, params, closing=0, shared=True):
  """The same scores from rows that hold several pairs."""
  batch = Layout(responses=2, shared=shared, targets=True, pad_id=1).pack(
    pairs(), PLAN, room=3
  )
  scores = roles.packed_scores(
    backbone, params, batch, max_response=RESPONSE, closing=closing
  )
  return scores[batch.valid][np.argsort(batch.index[batch.valid])]


@pytest.mark.parametrize("family", ["llama_tiny", "gemma3_tiny"])
@pytest.mark.parametrize("likelihood", [False, True])
def test_scores_and_gradients_are_those_of_each_side_alone(family, likelihood):
  backbone = roles.Backbone(toys.config(family), SPEC)
  trainable, frozen = role(backbone.config, likelihood)
  weights = np.random.default_rng(4).normal(size=(len(PROMPTS), 2))

  def weighed(score, trainable):
    params = params_lib.combine(trainable, frozen)
    scores = score(backbone, params)
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


@pytest.mark.parametrize("likelihood", [False, True])
def test_scores_are_what_a_head_makes_of_its_features(likelihood):
  """x . (w, v) + b, x from rows of one response each: no head is in it."""
  backbone = roles.Backbone(toys.config("llama_tiny"), SPEC)
  trainable, frozen = role(backbone.config, likelihood)
  params = params_lib.combine(trainable, frozen)
  head = params.pop(params_lib.HEAD)
  batch = Layout(responses=2, targets=True, pad_id=1).pack(
    pairs(), PLAN, room=3
  )
  x = roles.packed_features(
    backbone,
    params,
    batch,
    max_response=RESPONSE,
    closing=1,
    likelihood=likelihood,
  )
  weights = np.append(head["kernel"], head.get("likelihood", []))
  found = (np.asarray(x) @ weights + head["bias"])[batch.valid]
  np.testing.assert_allclose(
    found[np.argsort(batch.index[batch.valid])],
    alone(backbone, params | {params_lib.HEAD: head}, closing=1),
    **FLOAT32,
  )


def test_a_closing_is_no_part_of_the_response():
  """What a head of likelihood reads ends one token earlier."""
  backbone = roles.Backbone(toys.config("llama_tiny"), SPEC)
  params = params_lib.combine(*role(backbone.config, True))
  apart, closed, whole = (
    jax.jit(functools.partial(score, backbone, closing=closing))(params)
    for score, closing in ((alone, 1), (together, 1), (together, 0))
  )
  np.testing.assert_allclose(closed, apart, **FLOAT32)
  filled = np.stack([CHOSEN, REJECTED], axis=1) > 0
  assert np.abs(closed - whole)[filled].min() > 1e-4


def test_rows_for_a_kernel_without_masks(monkeypatch):
  """Each response has its own copy of the prompt, in a segment of its own."""
  backbone = roles.Backbone(toys.config("llama_tiny"), SPEC)
  params = params_lib.combine(*role(backbone.config, True))
  asked = []

  def hidden_states(*args, contiguous, **kwargs):
    asked.append(contiguous)
    return roles.hidden_states(*args, contiguous=contiguous, **kwargs)

  monkeypatch.setattr(packed_lib, "shares_prompts", lambda config: False)
  monkeypatch.setattr(packed_lib, "hidden_states", hidden_states)
  found = jax.jit(functools.partial(together, backbone, shared=False))(params)
  assert asked == [True]
  expected = jax.jit(functools.partial(alone, backbone))(params)
  np.testing.assert_allclose(found, expected, **FLOAT32)


def test_which_kernel_lets_responses_share_a_prompt():
  config = toys.config("llama_tiny")
  assert roles.shares_prompts(config) and roles.row_block(config) == 1
  splash = toys.config("llama_tiny", attention="splash")
  assert not roles.shares_prompts(splash) and roles.row_block(splash) == 128


def test_a_head_of_likelihood_needs_targets():
  backbone = roles.Backbone(toys.config("llama_tiny"), SPEC)
  params = params_lib.combine(*role(backbone.config, True))
  batch = Layout(responses=2).pack(pairs(), PLAN, room=3)
  with pytest.raises(ValueError, match="pack them with targets=True"):
    roles.packed_scores(backbone, params, batch, max_response=RESPONSE)
