"""The policy gradient of the real step on a real model of 16 responses.

They are enumerated: the expected gradient is exact, and compared with that of
the objective, differentiated through the model by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import params, roles, scoring, steps
from perl_jax.models.lora import LoraSpec
from tests import toys
from tests.steps.tabular import BETA, LENGTH, RESPONSES, REWARDS, VOCAB

BACKBONE = roles.Backbone(
  toys.config("tiny", vocab_size=VOCAB), LoraSpec(rank=2, alpha=2.0)
)
TEMPERATURE = 0.7
PROMPT = np.array([[0, 3, 1]], np.int32)  # the first column is padding


@functools.cache
def cast():
  """(policy, anchor, value, base): adapters that differ from each other."""

  def adapter(seed, head=False):
    tree = toys.random_params(
      BACKBONE.config, BACKBONE.lora, head=head, seed=seed
    )
    return params.partition(jax.tree.map(jnp.asarray, tree), "lora")

  policy, base = adapter(1)
  return policy, adapter(2)[0], adapter(3, head=True)[0], base


def every_response():
  count = len(RESPONSES)
  return (
    np.repeat(PROMPT, count, axis=0),
    np.full(count, 2, np.int32),
    RESPONSES.astype(np.int32),
    np.ones(RESPONSES.shape, bool),
  )


@functools.cache
def measured():
  """All 16 responses as the task would hand them to the step."""
  policy, anchor, _, base = cast()
  logprobs = jax.jit(scoring.make_logprobs(BACKBONE, temperature=TEMPERATURE))
  prompts, lengths, responses, mask = every_response()
  return steps.Experience(
    prompts,
    lengths,
    responses[:, None],
    mask[:, None],
    sampled_logprobs=logprobs(policy, base, *every_response())[0][:, None],
    anchor_logprobs=logprobs(anchor, base, *every_response())[0][:, None],
    rewards=REWARDS[:, None],
    beta=np.full(len(RESPONSES), BETA, np.float32),
  )


@functools.cache
def gradients():
  """Per response: the gradient of the loss of `steps`, with a leading 16."""
  policy, _, value, base = cast()
  loss_fn = steps.policy_loss(
    BACKBONE,
    steps.Estimator(name="reinforce", reduction="sequence"),
    temperature=TEMPERATURE,
  )

  def of_row(row):
    def total(trainable):
      batch = jax.tree.map(lambda x: x[None], row)
      return loss_fn(trainable, steps.Frozen(base, {}), batch, None)["loss"][0]

    return jax.grad(total)({"policy": policy, "value": value})

  rows = jax.tree.map(jnp.asarray, measured())
  return jax.device_get(jax.jit(jax.vmap(of_row))(rows))


def expected_over_responses(tree):
  weights = np.exp(
    np.asarray(measured().sampled_logprobs, float).sum(axis=(1, 2))
  )
  np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
  return jax.tree.map(
    lambda x: np.einsum("y,y...->...", weights, x.astype(float)), tree
  )


def close(found, expected):
  """Leaf by leaf, within 3e-4 of the largest entry of all.

  Gradients of float32 of single responses, many times larger, nearly cancel in
  what is expected: 1.4e-4 was seen.
  """
  found, expected = params.flatten(found), params.flatten(expected)
  assert found.keys() == expected.keys()
  atol = 3e-4 * max(np.abs(leaf).max() for leaf in expected.values())
  for path, leaf in expected.items():
    assert np.abs(leaf).max() > 10 * atol, f"{path} says nothing"
    np.testing.assert_allclose(found[path], leaf, atol=atol, err_msg=path)


def model_logprobs(trainable):
  *_, base = cast()
  return roles.response_logprobs(
    BACKBONE,
    params.combine(trainable, base),
    roles.with_response(*every_response()),
    response_len=LENGTH,
    temperature=TEMPERATURE,
  ).logprobs


def test_expected_gradient_of_the_step_is_exact():
  """Weighted by pi(y), the step's gradient by the adapter is that of -J."""
  policy, anchor, *_ = cast()
  reference = model_logprobs(anchor).sum(axis=1)

  def negative_objective(trainable):
    logprobs = model_logprobs(trainable).sum(axis=1)
    gain = (1.0 - BETA) * REWARDS - BETA * (logprobs - reference)
    return -jnp.sum(jnp.exp(logprobs) * gain)

  exact = jax.device_get(jax.jit(jax.grad(negative_objective))(policy))
  close(expected_over_responses(gradients()["policy"]), exact)


def test_expected_gradient_of_the_value_is_exact():
  """That of E[sum_t (Z_t - V(s_t))^2], returns from the shaped rewards."""
  policy, anchor, value, base = cast()
  difference = model_logprobs(policy) - model_logprobs(anchor)
  last = (1.0 - BETA) * REWARDS - BETA * difference[:, 1]
  returns = jnp.stack([last - BETA * difference[:, 0], last], axis=1)
  weights = jnp.exp(model_logprobs(policy).sum(axis=1))

  def expected_error(trainable):
    values = roles.response_values(
      BACKBONE,
      params.combine(trainable, base),
      roles.with_response(*every_response()),
      response_len=LENGTH,
    )
    return jnp.sum(weights * jnp.sum((returns - values) ** 2, axis=1))

  exact = jax.device_get(jax.jit(jax.grad(expected_error))(value))
  close(expected_over_responses(gradients()["value"]), exact)
