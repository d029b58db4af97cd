"""The loss of every estimator: by hand, in one pass or two, groups as rows.

References are NumPy loops over single responses, hidden states included.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from perl_jax import params, roles, scoring, steps
from perl_jax.models.lora import LoraSpec
from tests import toys
from tests.models import reference
from tests.steps.test_estimator import (
  BATCH,
  BETA,
  GROUP,
  PROMPT,
  random_experience,
)

CONFIG = toys.config("tiny")
SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(CONFIG, SPEC)
TEMPERATURE = 0.7


class Measured(steps.Estimator):
  """An estimator that is given log-probs and values, needed or not."""

  needs_measures = True


@functools.cache
def cast():
  """(policy, anchor, value, base)."""

  def adapter(seed, head=False):
    tree = toys.random_params(CONFIG, SPEC, head=head, seed=seed)
    return params.partition(jax.tree.map(jax.numpy.asarray, tree), "lora")[0]

  base = jax.tree.map(jax.numpy.asarray, toys.random_params(CONFIG))
  return adapter(1), adapter(2), adapter(3, head=True), base


@functools.cache
def measured():
  """`random_experience` with what policy, anchor and value really say."""
  policy, anchor, value, base = cast()
  scores = jax.jit(
    scoring.make_scores(BACKBONE, temperature=TEMPERATURE, together=())
  )
  e = random_experience(spoilt=0.0)
  trees = {"policy": policy, "anchor": anchor, "value": value}
  found = jax.device_get(
    scores(
      trees,
      {"": base},
      e.prompts,
      e.prompt_lengths,
      e.responses,
      e.response_mask,
    )
  )
  return e._replace(
    policy_logprobs=found["policy"],
    sampled_logprobs=found["policy"],
    anchor_logprobs=found["anchor"],
    values=found["value"],
  )


def trainable_of(estimator):
  policy, _, value, _ = cast()
  trained = {"policy": policy}
  return trained | ({"value": value} if estimator.uses_value else {})


def run(estimator, experience, temperature=TEMPERATURE):
  """(sums, gradient of the loss's sum)."""
  _, anchor, _, base = cast()
  loss_fn = steps.policy_loss(BACKBONE, estimator, temperature=temperature)

  def total(trainable):
    frozen = steps.Frozen(base, anchor)
    found = loss_fn(trainable, frozen, experience, None)
    return found["loss"][0], found

  gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, found), gradients = gradient(trainable_of(estimator))
  return jax.device_get((found, gradients))


def close(found, expected):
  """Leaf by leaf, within 1e-4 of the largest entry of all: float32."""
  found, expected = params.flatten(found), params.flatten(expected)
  assert found.keys() == expected.keys()
  atol = 1e-4 * max(np.abs(leaf).max() for leaf in expected.values())
  for path, leaf in expected.items():
    assert np.any(leaf), f"{path} says nothing"
    np.testing.assert_allclose(found[path], leaf, atol=atol, err_msg=path)


def same_sums(found, expected):
  assert found.keys() == expected.keys()
  for name, (total, count) in expected.items():
    np.testing.assert_allclose(
      found[name][0], total, rtol=1e-4, atol=1e-4, err_msg=name
    )
    assert found[name][1] == count, name


@pytest.mark.parametrize("name", ["reinforce", "grpo"])
def test_one_pass_equals_measuring_first(name):
  """Advantages made within the pass that learns are those made before it."""
  fused = steps.Estimator(name=name, group=GROUP)
  assert not fused.needs_measures
  twice = Measured(**dataclasses.asdict(fused))
  whole = measured()
  without = whole._replace(policy_logprobs=None, values=None)
  found, gradient = run(fused, without)
  expected, other = run(twice, steps.prepare(twice, whole))
  same_sums(found, expected)
  close(gradient, other)


def test_a_group_in_a_row_equals_rows_of_their_own():
  """Loss, gradient, every measure: prompts read once or for each response."""
  fields = {
    "name": "reinforce", "kl": "exact", "kl_place": "loss",
    "entropy_coef": 0.2,
  }  # fmt: skip
  whole = measured()._replace(policy_logprobs=None, values=None)

  def alone(array):
    return array.reshape(BATCH * GROUP, 1, *array.shape[2:])

  apart = whole._replace(
    prompts=np.repeat(whole.prompts, GROUP, axis=0),
    prompt_lengths=np.repeat(whole.prompt_lengths, GROUP),
    beta=np.repeat(whole.beta, GROUP),
    **{
      name: alone(getattr(whole, name))
      for name in ("responses", "response_mask", "sampled_logprobs",
                   "anchor_logprobs", "rewards")
    },
  )  # fmt: skip
  found, gradient = run(steps.Estimator(group=GROUP, **fields), whole)
  expected, other = run(steps.Estimator(**fields), apart)
  assert found["kl_loss"][0] > 0.1
  del found["equal_rewards"]  # a row of its own is no group
  same_sums(found, expected)
  close(gradient, other)


@functools.cache
def responses_by_hand():
  """{(b, g): (policy logprobs [T, V], those of the anchor, values [T])}."""
  policy, anchor, value, base = jax.device_get(cast())
  e, found = measured(), {}
  for b in range(BATCH):
    prompt = e.prompts[b, PROMPT - e.prompt_lengths[b] :]
    for g in range(GROUP):
      response = e.responses[b, g, e.response_mask[b, g]]
      ids = np.concatenate([prompt, response])

      def hidden(role, ids=ids, start=e.prompt_lengths[b] - 1):
        tree = params.combine(role, base)
        states = reference.hidden_states(
          CONFIG, tree, ids, lora_scale=SPEC.scale
        )
        return states[start:-1]

      def logprobs(role, hidden=hidden):
        logits = hidden(role) @ base["embedding"].astype(float).T
        rows = [reference.log_softmax(row / TEMPERATURE) for row in logits]
        return np.array(rows).reshape(-1, toys.VOCAB)

      head = value["head"]
      values = hidden(value) @ head["kernel"].astype(float) + head["bias"]
      found[b, g] = logprobs(policy), logprobs(anchor), values
  return found


CLIP = {"clip_low": 0.2, "clip_high": 0.3, "value_clip": 0.25}


def off_policy():
  """An experience of an older policy and an older value model."""
  rng, e = np.random.default_rng(3), measured()

  def moved(array, scale):
    noise = scale * rng.normal(size=array.shape)
    return np.where(e.response_mask, array + noise, 0).astype(np.float32)

  zeros = np.zeros_like(e.values)
  return e._replace(
    policy_logprobs=moved(e.policy_logprobs, 0.4),
    values=moved(e.values, 0.4),
    advantages=moved(zeros, 1.0),
    returns=moved(zeros, 1.0),
  )


@pytest.mark.parametrize("kl", ["k2", "k3", "exact"])
def test_loss_by_hand(kl):
  """Clipped ratio, clipped values, KL and entropy, each and their sum."""
  estimator = steps.Estimator(
    name="ppo", group=GROUP, epochs=2, kl=kl, kl_place="loss",
    entropy_coef=0.2, value_coef=0.5, **CLIP,
  )  # fmt: skip
  e, total = off_policy(), dict.fromkeys(
    ("policy_loss", "value_loss", "kl_loss", "entropy", "clip_fraction",
     "value_clip_fraction", "approx_kl",
     "ratio", "advantage", "kl_per_token", "kl_k3", "sampler_difference"), 0.0
  )  # fmt: skip
  for (b, g), (policy, anchor, values) in responses_by_hand().items():
    for t in range(len(values)):
      token = e.responses[b, g, t]
      old, held = e.policy_logprobs[b, g, t], e.anchor_logprobs[b, g, t]
      advantage, target = e.advantages[b, g, t], e.returns[b, g, t]
      ratio = np.exp(policy[t, token] - old)
      cut = np.clip(ratio, 1 - CLIP["clip_low"], 1 + CLIP["clip_high"])
      total["ratio"] += ratio
      total["advantage"] += advantage
      total["policy_loss"] -= min(ratio * advantage, cut * advantage)
      total["clip_fraction"] += cut * advantage < ratio * advantage
      old_value = e.values[b, g, t]
      near = old_value + np.clip(values[t] - old_value, -0.25, 0.25)
      total["value_clip_fraction"] += (target - near) ** 2 > (
        target - values[t]
      ) ** 2
      total["approx_kl"] += ratio - 1 - np.log(ratio)
      total["value_loss"] += max(
        (target - values[t]) ** 2, (target - near) ** 2
      )
      d = policy[t, token] - anchor[t, token]
      total["kl_loss"] += {
        "k2": d**2 / 2,
        "k3": np.exp(-d) - 1 + d,
        "exact": np.exp(policy[t]) @ (policy[t] - anchor[t]),
      }[kl]
      total["entropy"] -= np.exp(policy[t]) @ policy[t]
      total["kl_per_token"] += old - held
      total["kl_k3"] += np.exp(held - old) - 1 + old - held
      total["sampler_difference"] += abs(old - e.sampled_logprobs[b, g, t])
  count = e.response_mask.sum()
  assert 0.1 * count < total["clip_fraction"] < 0.9 * count
  assert 0.1 * count < total["value_clip_fraction"] < 0.9 * count
  total["entropy_loss"] = -total["entropy"]
  total["loss"] = (
    total["policy_loss"]
    + 0.5 * total["value_loss"]
    + BETA * total["kl_loss"]
    - 0.2 * total["entropy"]
  )
  loss_fn = steps.policy_loss(BACKBONE, estimator, temperature=TEMPERATURE)
  _, anchor, _, base = cast()
  found = jax.jit(loss_fn)(
    trainable_of(estimator), steps.Frozen(base, anchor), e, None
  )
  for name, expected in total.items():
    np.testing.assert_allclose(
      found[name][0], expected, rtol=1e-4, atol=1e-4, err_msg=name
    )
    assert found[name][1] == count, name


def test_padding_reaches_neither_loss_nor_gradient():
  """Cold, where a padding token is as unlikely as exp(-100).

  k3 of it would overflow; policy and anchor are equal here, so that k3 of what
  is kept is 0.
  """
  policy, *_, base = cast()
  cold = 0.01
  e = measured()
  args = (e.prompts, e.prompt_lengths, e.responses, e.response_mask)
  scores = jax.jit(
    scoring.make_scores(BACKBONE, temperature=cold, together=())
  )({"anchor": policy}, {"": base}, *args)["anchor"]
  estimator = steps.Estimator(
    name="rloo", group=GROUP, kl="k3", kl_place="loss"
  )
  e = e._replace(anchor_logprobs=scores, policy_logprobs=None, values=None)
  found, gradient = run(estimator, e, cold)
  assert found["kl_loss"][0] == pytest.approx(0.0, abs=1e-3)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found, gradient)))
  filled = np.where(e.response_mask, e.responses, 7).astype(np.int32)
  assert not np.array_equal(filled, e.responses)
  again, other = run(estimator, e._replace(responses=filled), cold)
  same_sums(again, found)
  close(other, gradient)
