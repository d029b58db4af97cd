"""Measurements of a rollout: equal roles give equal bits, ratios are 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, rollout, steps
from perl_jax.models.lora import LoraSpec
from tests import toys
from tests.models import reference

CONFIG = toys.config("gemma2_tiny")
SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(CONFIG, SPEC)
TEMPERATURE, RESPONSE_LEN = 0.9, 6
# The same formula in two compiled programs: float32 reassociation.
ACROSS_PROGRAMS = dict(rtol=1e-5, atol=1e-5)


@functools.cache
def trees():
  """(policy, reward model, base)."""
  policy, base = params_lib.partition(toys.random_params(CONFIG, SPEC), "lora")
  other = toys.random_params(CONFIG, SPEC, head=True, seed=1)
  reward, _ = params_lib.partition(other, "lora")
  return policy, reward, base


@functools.cache
def sampled():
  """(prompts, lengths, responses, mask); row 3 only fills up the batch."""
  lengths = np.array([4, 1, 3, 2], np.int32)
  columns = np.arange(4) >= 4 - lengths[:, None]
  prompts = np.where(columns, toys.random_tokens(60, 4, 4), 0)
  mask = np.arange(RESPONSE_LEN) < np.array([6, 2, 4, 0])[:, None]
  responses = np.where(mask, toys.random_tokens(61, 4, RESPONSE_LEN), 0)
  return prompts, lengths, responses, mask


MEASURE = jax.jit(rollout.make_logprobs(BACKBONE, temperature=TEMPERATURE))


def measure(*args):
  return jax.device_get(MEASURE(*args))


def test_equal_policy_and_anchor_have_equal_bits():
  """So that the KL at step 0 is exactly 0, not about 0."""
  policy, _, base = trees()
  anchor = jax.tree.map(jnp.array, policy)
  one, one_entropy = measure(policy, base, *sampled())
  two, two_entropy = measure(anchor, base, *sampled())
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one_entropy, two_entropy)
  assert np.all(np.asarray(one - two) == 0.0)
  assert one.dtype == one_entropy.dtype == np.float32
  moved, _ = measure(toys.perturbed(policy), base, *sampled())
  assert np.abs(one - moved).max() > 0.1


def test_masked_entries_are_zero_and_others_are_not():
  policy, _, base = trees()
  mask = sampled()[3]
  logprobs, entropy = measure(policy, base, *sampled())
  assert not np.any(logprobs[~mask]) and not np.any(entropy[~mask])
  assert np.all(logprobs[mask] < 0) and np.all(entropy[mask] > 0)
  assert np.all(entropy[mask] <= np.log(toys.VOCAB) + 1e-5)


def test_logprobs_do_not_depend_on_what_follows_the_response():
  policy, _, base = trees()
  prompts, lengths, responses, mask = sampled()
  other = np.where(mask, responses, 7)
  assert not np.array_equal(other, responses)
  plain = measure(policy, base, *sampled())
  again = measure(policy, base, prompts, lengths, other, mask)
  np.testing.assert_array_equal(again[0], plain[0])
  np.testing.assert_array_equal(again[1], plain[1])


def test_rewards_equal_numpy_and_the_layout_of_training():
  """Left-padded prompt + response scores as the right-padded pair does."""
  _, reward, base = trees()
  prompts, lengths, responses, mask = sampled()
  params = params_lib.combine(reward, base)
  found = jax.jit(rollout.make_rewards(BACKBONE))(reward, base, *sampled())
  assert found.shape == (4,) and found.dtype == jnp.float32

  tokens = np.zeros((4, 4 + RESPONSE_LEN), np.int32)
  totals = lengths + mask.sum(axis=1)
  for row, total in enumerate(totals):
    ids = np.concatenate(
      [prompts[row, 4 - lengths[row] :], responses[row, mask[row]]]
    )
    tokens[row, :total] = ids
    last = reference.hidden_states(CONFIG, params, ids, lora_scale=SPEC.scale)[
      -1
    ]
    np.testing.assert_allclose(
      found[row],
      last @ reward["head"]["kernel"] + reward["head"]["bias"],
      rtol=2e-5,
      atol=2e-5,
    )
  score = functools.partial(steps.reward_scores, BACKBONE, max_response=8)
  trained = jax.jit(score)(params, tokens, totals, lengths)
  np.testing.assert_allclose(found, trained, **ACROSS_PROGRAMS)


def test_groups_are_measured_as_repeated_prompts_are():
  policy, reward, base = trees()
  prompts, lengths, responses, mask = sampled()
  prompts, lengths = prompts[:2], lengths[:2]
  grouped = rollout.make_logprobs(BACKBONE, temperature=TEMPERATURE, group=2)
  args = (prompts, lengths, responses, mask)
  found = jax.jit(grouped)(policy, base, *args)
  scores = jax.jit(rollout.make_rewards(BACKBONE, group=2))(reward, base, *args)
  args = (prompts.repeat(2, axis=0), lengths.repeat(2), responses, mask)
  for ours, theirs in zip(found, measure(policy, base, *args), strict=True):
    assert np.all(ours[~mask] == 0.0)
    np.testing.assert_allclose(ours, theirs, **ACROSS_PROGRAMS)
  np.testing.assert_allclose(
    scores,
    jax.jit(rollout.make_rewards(BACKBONE))(reward, base, *args),
    **ACROSS_PROGRAMS,
  )


def test_penalise_unstopped_by_hand():
  found = rollout.penalise_unstopped(
    jnp.array([1.0, -2.0]), jnp.array([True, False]), 0.5
  )
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [1.0, -2.5])


def rollout_record():
  policy, reward, base = trees()
  logprobs, _ = measure(policy, base, *sampled())
  prompts, lengths, responses, mask = sampled()
  return (
    rollout.Rollout(
      prompts=prompts,
      prompt_lengths=lengths,
      responses=responses,
      response_mask=mask,
      policy_logprobs=logprobs,
      anchor_logprobs=logprobs,
      rewards=jnp.array([1.0, -1.0, 0.5, 0.0]),
    ),
    {"policy": policy, "value": reward},
    base,
  )


def reinforce():
  return steps.reinforce_loss(
    BACKBONE,
    temperature=TEMPERATURE,
    beta=0.1,
    value_coef=0.5,
    reduction="token",
  )


@pytest.mark.slow
def test_on_policy_ratio_is_one_in_the_training_step():
  """The loss recomputes what `make_logprobs` measured; after it, no more."""
  record, trainable, base = rollout_record()
  optimizer = optax.sgd(0.1)
  step = jax.jit(steps.make_train_step(reinforce(), optimizer))
  state = steps.init_state(trainable, optimizer)
  after, metrics = step(state, base, record, jax.random.key(0))
  np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=0, atol=2e-6)
  params_lib.require_same_leaves(trainable, after.trainable, "trainable")
  _, second = step(after, base, record, jax.random.key(0))
  assert abs(float(second["ratio"]) - 1.0) > 1e-4
