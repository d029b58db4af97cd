"""Estimators: what is refused, and advantages by a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import steps
from tests import toys

BETA = 0.3
BATCH, GROUP, PROMPT, RESPONSE = 4, 3, 3, 4

# One formula in float32, in another order of sums.
FLOAT32 = dict(rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
  "fields, reason",
  [
    ({"name": "rlo", "group": 4}, r"estimator='rlo'.* Did you mean 'rloo'\?"),
    ({"name": "x"}, r"estimator='x': choose one of \('reinforce', .*\)\.$"),
    ({"reduction": "sequenc"}, "reduction='sequenc'.*'sequence'"),
    ({"name": "rloo"}, "samples_per_prompt to 2 or more, it is 1"),
    ({"name": "grpo"}, "'grpo' compares the responses to a prompt"),
    ({"name": "dr_grpo"}, "'dr_grpo' compares the responses to a prompt"),
    ({"kl_place": "loss"}, "'k1' in the loss: its gradient is 0"),
    ({"kl": "k2"}, "'k2' in the reward: it is biased"),
    ({"kl": "k3"}, "'k3' in the reward: it is biased"),
    ({"kl": "exact"}, "'exact' in the reward: it is the same for every token"),
    ({"kl": "k4"}, "KL estimator 'k4' is unknown"),
    ({"kl_place": "los"}, "KL place 'los' is unknown"),
    ({"epochs": 2}, "'reinforce' with ppo.epochs=2.*use one of ppo, grpo"),
    (
      {"name": "rloo", "group": 2, "minibatches": 4},
      "'rloo' with .*ppo.minibatches=4: after the first update",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(fields, reason):
  with pytest.raises(ValueError, match=reason):
    steps.Estimator(**fields)


def test_what_is_measured_before_the_update():
  """Only where the learning pass cannot make it: it would be too late."""
  group = {"group": 2}
  for fields, needed in (
    ({"name": "reinforce"}, False),
    ({"name": "rloo", **group}, False),
    ({"name": "grpo", **group}, False),
    ({"name": "grpo", "epochs": 2, **group}, True),
    ({"name": "dr_grpo", "minibatches": 2, **group}, True),
    ({"name": "reinforce", "whiten": True}, True),
    ({"name": "ppo"}, True),
  ):
    assert steps.Estimator(**fields).needs_measures == needed, fields


# Advantages by hand.


def random_experience(seed=0, spoilt=np.nan):
  """Numbers of any origin; what is masked is `spoilt`.

  Prompt 1 has a response without tokens, prompt 2 equal responses.
  """
  rng = np.random.default_rng(seed)
  shape = (BATCH, GROUP, RESPONSE)
  lengths = rng.integers(1, RESPONSE + 1, shape[:2])
  lengths[1, 2] = 0
  mask = np.arange(RESPONSE) < lengths[..., None]

  def drawn(low=0.0):
    values = rng.normal(size=shape) - low
    return np.where(mask, values, spoilt).astype(np.float32)

  found = steps.Experience(
    prompts=toys.random_tokens(seed, BATCH, PROMPT),
    prompt_lengths=np.array([3, 1, 2, 3], np.int32),
    responses=toys.random_tokens(seed + 1, *shape),
    response_mask=mask,
    sampled_logprobs=drawn(1.0),
    anchor_logprobs=drawn(1.0),
    rewards=rng.normal(size=shape[:2]).astype(np.float32),
    beta=np.full(BATCH, BETA, np.float32),
    policy_logprobs=drawn(1.0),
    values=drawn(),
  )
  for array in (found.policy_logprobs, found.anchor_logprobs, found.rewards):
    array[2] = array[2, :1]
  mask[2] = mask[2, :1]
  for array in found:
    if array is not None and array.dtype == np.float32 and array.ndim == 3:
      array[~mask] = spoilt
      array[mask & np.isnan(array)] = 0.5
  return found


def shaped_by_hand(estimator, e, b, g):
  """Rewards of one response, token by token, float64."""
  n = int(e.response_mask[b, g].sum())
  rewards = np.zeros(n)
  for t in range(n):
    if estimator.kl_place == "reward":
      k1 = float(e.policy_logprobs[b, g, t]) - float(e.anchor_logprobs[b, g, t])
      rewards[t] -= BETA * k1
    if t == n - 1:
      rewards[t] += (1 - BETA) * e.rewards[b, g]
  return rewards


def prepared_by_hand(estimator, e):
  """(advantages, returns), float64, 0 where masked."""
  advantages, returns = np.zeros((2, BATCH, GROUP, RESPONSE))
  for b in range(BATCH):
    rows = [shaped_by_hand(estimator, e, b, g) for g in range(GROUP)]
    whole = np.array([rewards.sum() for rewards in rows])
    for g, rewards in enumerate(rows):
      values = [*e.values[b, g, : len(rewards)].astype(float), 0.0]
      for t in range(len(rewards)):
        later = range(t, len(rewards))
        returns[b, g, t] = rewards[t:].sum()
        others = [whole[i] for i in range(GROUP) if i != g]
        if estimator.name == "reinforce":
          found = returns[b, g, t] - values[t]
        elif estimator.name == "ppo":
          found = sum(
            (estimator.discount * estimator.gae_lambda) ** (u - t)
            * (rewards[u] + estimator.discount * values[u + 1] - values[u])
            for u in later
          )
          returns[b, g, t] = found + values[t]
        elif estimator.name == "rloo":
          found = whole[g] - np.mean(others)
        elif estimator.name == "dr_grpo":
          found = whole[g] - whole.mean()
        else:
          # The KL is what the returns have beside the rewards.
          some = e.response_mask[b].any(axis=1)
          scores = np.where(some, e.rewards[b].astype(float), 0.0)
          pull = whole - (1 - BETA) * scores
          found = pull[g] - pull.mean()
          found += (
            (1 - BETA) * (scores[g] - scores.mean()) / max(scores.std(), 1e-4)
          )
        advantages[b, g, t] = found
  if estimator.whiten:
    kept = advantages[e.response_mask]
    whitened = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    advantages[e.response_mask] = whitened
  return advantages, returns


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("kl, place", [("k1", "reward"), ("k2", "loss")])
@pytest.mark.parametrize(
  "name", ["reinforce", "ppo", "rloo", "grpo", "dr_grpo"]
)
def test_advantages_by_hand(name, kl, place, whiten):
  """What is masked is NaN, and comes out as 0."""
  estimator = steps.Estimator(
    name=name, group=GROUP, kl=kl, kl_place=place, whiten=whiten,
    discount=0.9, gae_lambda=0.8,
  )  # fmt: skip
  experience = random_experience()
  found = steps.prepare(estimator, experience)
  advantages, returns = prepared_by_hand(estimator, experience)
  np.testing.assert_allclose(found.advantages, advantages, **FLOAT32)
  np.testing.assert_allclose(found.returns, returns, **FLOAT32)
  assert not np.any(np.asarray(found.advantages)[~experience.response_mask])
  if name in ("rloo", "grpo", "dr_grpo") and not whiten:
    assert not np.any(found.advantages[2])  # equal responses
    assert np.all(found.advantages[0] != 0, where=experience.response_mask[0])
  for field in ("policy_logprobs", "values", "rewards"):
    assert getattr(found, field) is getattr(experience, field)


def test_no_gradient_flows_into_advantages():
  estimator = steps.Estimator(name="ppo", whiten=True)
  experience = random_experience(spoilt=0.0)

  def total(policy_logprobs, values):
    found = steps.prepare(
      estimator,
      experience._replace(policy_logprobs=policy_logprobs, values=values),
    )
    return jnp.sum(found.advantages**2 + found.returns**2)

  gradients = jax.grad(total, (0, 1))(
    jnp.asarray(experience.policy_logprobs), jnp.asarray(experience.values)
  )
  assert not any(np.any(g) for g in gradients)
