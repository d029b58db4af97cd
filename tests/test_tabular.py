"""The policy gradient where everything is known: 16 responses of two tokens.

A response is y = (a, b), each one of 4 tokens; a table gives its reward r(y).
The objective is that of the paper with k1 in the reward,

  J(pi) = E_pi[(1 - beta) r(y)] - beta KL(pi || pi_anchor),

whose optimum is pi* = pi_anchor exp((1 - beta) r / beta) / Z. The formulas
under test are the project's; sampling, the exact J and its gradient are not.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import optim, params, roles, rollout, steps
from perl_jax.models.lora import LoraSpec
from perl_jax.objectives import advantages, kl, masked, policy_gradient
from tests import toys

VOCAB, LENGTH = 4, 2
BETA = 0.3
RESPONSES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
_RNG = np.random.default_rng(6)
REWARDS = _RNG.normal(size=VOCAB**LENGTH).astype(np.float32)
# Row 0: logits of the first token; row 1 + a: of the second, after a first a.
ANCHOR = _RNG.normal(size=(1 + VOCAB, VOCAB)).astype(np.float32)
POLICY = (ANCHOR + _RNG.normal(size=ANCHOR.shape)).astype(np.float32)
BASELINE = _RNG.normal(size=1 + VOCAB).astype(np.float32)


def states(responses):
  """Row of the table that each token is drawn from, `[B, 2]`."""
  first = jnp.zeros_like(responses[:, 0])
  return jnp.stack([first, 1 + responses[:, 0]], axis=1)


def token_logprobs(table, responses):
  rows = jax.nn.log_softmax(table)[states(responses)]
  return jnp.take_along_axis(rows, responses[..., None], axis=-1)[..., 0]


def sample(table, key, batch):
  first_key, second_key = jax.random.split(key)
  first = jax.random.categorical(first_key, table[0], shape=(batch,))
  second = jax.random.categorical(second_key, jnp.asarray(table)[1 + first])
  return jnp.stack([first, second], axis=1)


def probabilities(table):
  return jnp.exp(token_logprobs(table, RESPONSES).sum(axis=1))


def exact_objective(table, beta=BETA):
  """J by enumeration."""
  logprobs = token_logprobs(table, RESPONSES).sum(axis=1)
  anchor = token_logprobs(ANCHOR, RESPONSES).sum(axis=1)
  gain = (1.0 - beta) * REWARDS - beta * (logprobs - anchor)
  return jnp.sum(jnp.exp(logprobs) * gain)


def losses(
  table, baseline, responses, behaviour, *, beta=BETA, estimator=kl.kl_k1
):
  """Policy and value loss per token, `[B, 2]`, from the project's formulas.

  `behaviour` is the table that sampled the responses, without gradient.
  """
  mask = jnp.ones(responses.shape, bool)
  logprobs = token_logprobs(table, responses)
  shaped = advantages.shape_rewards(
    sequence_rewards=jnp.asarray(REWARDS)[responses @ jnp.array([VOCAB, 1])],
    kl=estimator(
      token_logprobs(behaviour, responses), token_logprobs(ANCHOR, responses)
    ),
    response_mask=mask,
    beta=beta,
  )
  returns = advantages.returns_to_go(shaped, mask)
  values = jnp.asarray(baseline)[states(responses)]
  policy_loss = policy_gradient.reinforce_loss(
    logprobs=logprobs,
    advantages=advantages.reinforce_advantages(returns, values),
  )
  return policy_loss, policy_gradient.value_loss(values=values, returns=returns)


def optimum():
  logprobs = np.asarray(token_logprobs(ANCHOR, RESPONSES).sum(axis=1), float)
  weights = np.exp(logprobs + (1.0 - BETA) * REWARDS / BETA)
  return weights / weights.sum()


def total_variation(p, q):
  return 0.5 * float(np.abs(np.asarray(p, float) - q).sum())


def test_closed_form_is_the_optimum():
  """No other table does better: the gradient of J is 0 at pi*, and J lower."""
  best = optimum().reshape(VOCAB, VOCAB)
  first = best.sum(axis=1)
  table = np.log(np.vstack([first, best / first[:, None]])).astype(np.float32)
  gradient = jax.grad(exact_objective)(table)
  assert np.abs(gradient).max() < 1e-5
  rng = np.random.default_rng(0)
  for _ in range(20):
    moved = table + 0.3 * rng.normal(size=table.shape).astype(np.float32)
    assert exact_objective(moved) < exact_objective(table)


@functools.cache
def trained():
  """(policy, baseline) after 600 steps of 4,096 responses, from the anchor."""
  count, batch = 600, 4096
  optimizer = optim.make_optimizer(
    name="adamw",
    schedule=optim.make_schedule(
      name="cosine", learning_rate=0.05, warmup_steps=0, total_steps=count
    ),
    b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=0.0,
  )  # fmt: skip

  def loss(trainable, responses):
    table, baseline = trainable
    policy, value = losses(
      table, baseline, responses, jax.lax.stop_gradient(table)
    )
    mask = jnp.ones(responses.shape, bool)
    return masked.masked_sum(policy + value, mask) / batch

  def step(state, key):
    trainable, opt_state = state
    responses = sample(trainable[0], key, batch)
    gradient = jax.grad(loss)(trainable, responses)
    updates, opt_state = optimizer.update(gradient, opt_state, trainable)
    return (jax.tree.map(jnp.add, trainable, updates), opt_state), None

  start = jnp.asarray(ANCHOR), jnp.zeros(1 + VOCAB)
  keys = jax.random.split(jax.random.key(0), count)
  state, _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))(
    (start, optimizer.init(start))
  )
  return jax.device_get(state[0])


def test_trained_policy_is_the_closed_form():
  """Total variation below 0.02, as issue point 6 asks; the anchor is far."""
  policy, _ = trained()
  assert total_variation(probabilities(ANCHOR), optimum()) > 0.3
  assert total_variation(probabilities(policy), optimum()) < 0.02


def test_trained_value_is_the_expected_return():
  """V(s) = E[Z_t | s] under pi*: at the start J(pi*), everywhere log Z."""
  _, baseline = trained()
  best = optimum().reshape(VOCAB, VOCAB)
  shaped = (1.0 - BETA) * REWARDS.reshape(VOCAB, VOCAB).astype(float)
  second = best / best.sum(axis=1, keepdims=True)
  anchor = np.asarray(jax.nn.log_softmax(ANCHOR), float)
  after = (second * (shaped - BETA * (np.log(second) - anchor[1:]))).sum(axis=1)
  start = float(exact_objective(np.log(_table(best)).astype(np.float32)))
  np.testing.assert_allclose(baseline[0], start, atol=0.03)
  # Rare first tokens are seen too seldom for a tight bound.
  common = best.sum(axis=1) > 0.05
  assert common.sum() >= 2
  np.testing.assert_allclose(baseline[1:][common], after[common], atol=0.05)


def _table(joint):
  first = joint.sum(axis=1)
  return np.vstack([first, joint / first[:, None]])


@functools.partial(jax.jit, static_argnames=("beta", "estimator"))
def estimates(baseline, beta=BETA, estimator=kl.kl_k1):
  """400 independent estimates of the gradient of -J, `[400, 5, 4]`."""

  def estimate(key):
    responses = sample(POLICY, key, 512)

    def mean_loss(table):
      policy, _ = losses(
        table, baseline, responses, POLICY, beta=beta, estimator=estimator
      )
      return jnp.sum(policy) / len(responses)

    return jax.grad(mean_loss)(jnp.asarray(POLICY))

  return jax.lax.map(estimate, jax.random.split(jax.random.key(1), 400))


def z_scores(found, expected):
  """Distance of the mean from what is expected, in standard errors."""
  found = np.asarray(found, float)
  error = found.std(axis=0, ddof=1) / len(found) ** 0.5
  return (found.mean(axis=0) - np.asarray(expected, float)) / error


@pytest.mark.parametrize("baseline", [np.zeros_like(BASELINE), BASELINE])
def test_averaged_gradient_is_the_analytic_one(baseline):
  """20 z-scores of 204,800 responses: below 4, with mean square about 1."""
  scores = z_scores(estimates(baseline), -jax.grad(exact_objective)(POLICY))
  assert np.abs(scores).max() < 4.0, scores
  assert 0.2 < np.mean(scores**2) < 2.5, scores


def test_averaged_gradient_would_show_a_wrong_objective():
  """The same samples tell beta, the sign of the KL and k3 apart from J."""
  found = estimates(np.zeros_like(BASELINE))
  for wrong in (
    -jax.grad(exact_objective)(POLICY, 0.0),
    -jax.grad(exact_objective)(POLICY, BETA + 0.05),
    jax.grad(exact_objective)(POLICY),
  ):
    assert np.abs(z_scores(found, wrong)).max() > 8.0
  # k3 is an unbiased value, but in the reward its gradient is another.
  biased = estimates(np.zeros_like(BASELINE), estimator=kl.kl_k3)
  scores = z_scores(biased, -jax.grad(exact_objective)(POLICY))
  assert np.abs(scores).max() > 8.0


def test_baseline_takes_variance_away():
  """The trained values as baseline: less noise, the same mean."""
  none = np.asarray(estimates(np.zeros_like(BASELINE)))
  behaviour = probabilities(POLICY).reshape(VOCAB, VOCAB)
  gain = (1.0 - BETA) * REWARDS - BETA * (
    token_logprobs(POLICY, RESPONSES) - token_logprobs(ANCHOR, RESPONSES)
  ).sum(axis=1)
  expected = float(jnp.sum(behaviour.ravel() * gain))
  good = np.asarray(estimates(np.full_like(BASELINE, expected)))
  assert good.var(axis=0).sum() < none.var(axis=0).sum()


# The same through the real transformer and the real step.

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
  """The rollout of all 16 responses, as the task would make it."""
  policy, anchor, _, base = cast()
  logprobs = jax.jit(rollout.make_logprobs(BACKBONE, temperature=TEMPERATURE))
  return rollout.Rollout(
    *every_response(),
    logprobs(policy, base, *every_response())[0],
    logprobs(anchor, base, *every_response())[0],
    REWARDS,
  )


@functools.cache
def gradients():
  """Per response: the gradient of the loss of `steps`, with a leading 16."""
  _, _, _, base = cast()
  loss_fn = steps.reinforce_loss(
    BACKBONE,
    temperature=TEMPERATURE,
    beta=BETA,
    value_coef=1.0,
    reduction="sequence",
  )

  def of_row(row):
    def total(trainable):
      batch = jax.tree.map(lambda x: x[None], row)
      return loss_fn(trainable, base, batch, None)["loss"][0]

    policy, _, value, _ = cast()
    return jax.grad(total)({"policy": policy, "value": value})

  rows = jax.tree.map(jnp.asarray, measured())
  return jax.device_get(jax.jit(jax.vmap(of_row))(rows))


def expected_over_responses(tree):
  weights = np.exp(np.asarray(measured().policy_logprobs, float).sum(axis=1))
  np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
  return jax.tree.map(
    lambda x: np.einsum("y,y...->...", weights, x.astype(float)), tree
  )


def close(found, expected):
  """Leaf by leaf, within 1e-4 of the largest entry of all: float32."""
  found, expected = params.flatten(found), params.flatten(expected)
  assert found.keys() == expected.keys()
  atol = 1e-4 * max(np.abs(leaf).max() for leaf in expected.values())
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
