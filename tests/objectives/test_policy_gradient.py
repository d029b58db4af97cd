"""The losses, and the exact gradient of the objective on a toy language.

The toy has 4 tokens and responses of at most two. Its policy is a table of
logits, so every response can be listed with its probability. The expectation
of the REINFORCE gradient is then a sum, without sampling noise, and is compared
with finite differences of the objective in float64 NumPy.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import advantages, kl, masked, policy_gradient

VOCAB = 4


def test_hand_computed():
  logprobs = jnp.array([[-1.0, -2.0]])
  np.testing.assert_array_equal(
    policy_gradient.reinforce_loss(
      logprobs=logprobs, advantages=jnp.array([[3.0, -0.5]])
    ),
    [[3.0, -1.0]],
  )
  np.testing.assert_array_equal(
    policy_gradient.value_loss(
      values=jnp.array([[1.0, -1.0]]), returns=jnp.array([[3.0, -0.5]])
    ),
    [[4.0, 0.25]],
  )


def test_gradients_stop_where_they_should():
  first, second = jnp.array([[-1.0, -2.0]]), jnp.array([[3.0, -0.5]])
  logprobs, advantage = jax.grad(
    lambda a, b: jnp.sum(
      policy_gradient.reinforce_loss(logprobs=a, advantages=b)
    ),
    argnums=(0, 1),
  )(first, second)
  np.testing.assert_array_equal(logprobs, -second)
  np.testing.assert_array_equal(advantage, np.zeros((1, 2)))
  values, returns = jax.grad(
    lambda a, b: jnp.sum(policy_gradient.value_loss(values=a, returns=b)),
    argnums=(0, 1),
  )(first, second)
  np.testing.assert_array_equal(values, 2 * (first - second))
  np.testing.assert_array_equal(returns, np.zeros((1, 2)))


def losses(logprobs, values, returns):
  advantage = advantages.reinforce_advantages(returns, values)
  return (
    policy_gradient.reinforce_loss(logprobs=logprobs, advantages=advantage),
    policy_gradient.value_loss(values=values, returns=returns),
  )


def test_equals_slow_loop_and_jit():
  rng = np.random.default_rng(0)
  arrays = rng.normal(size=(3, 4, 5)).astype(np.float32)
  expected = np.zeros((2, 4, 5))
  for index in np.ndindex(4, 5):
    logprob, value, z = (float(x[index]) for x in arrays)
    expected[0][index] = -logprob * (z - value)
    expected[1][index] = (z - value) ** 2
  for run in (losses, jax.jit(losses)):
    np.testing.assert_allclose(run(*arrays), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_tokens_change_nothing(bad):
  rng = np.random.default_rng(1)
  mask = np.array([[True, True, False], [True, False, False]])
  clean = rng.normal(size=(3, 2, 3)).astype(np.float32) * mask
  dirty = np.where(mask, clean, np.float32(bad))

  def total(logprobs, values, returns):
    kept = [masked.keep(x, mask) for x in (logprobs, values, returns)]
    policy, value = losses(*kept)
    return masked.masked_mean(policy, mask) + masked.masked_mean(value, mask)

  step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  value, gradients = step(*dirty)
  clean_value, clean_gradients = step(*clean)
  assert np.isfinite(value) and value == clean_value
  for gradient, reference in zip(gradients, clean_gradients, strict=True):
    np.testing.assert_array_equal(gradient, reference)
    assert np.all(np.asarray(gradient)[~mask] == 0.0)
    assert np.all(np.asarray(gradient)[mask] != 0.0)


def test_strict_about_types_and_shapes():
  good = jnp.zeros((2, 3))
  for bad in (good.astype(jnp.bfloat16), good.astype(jnp.int32), good[:, :1]):
    with pytest.raises(AssertionError):
      policy_gradient.reinforce_loss(logprobs=good, advantages=bad)
    with pytest.raises(AssertionError):
      policy_gradient.value_loss(values=good, returns=bad)


def list_responses(stop):
  """All responses `[N, 2]` and their masks; token 0 may end one."""
  pairs = list(itertools.product(range(VOCAB), repeat=2))
  if stop:
    pairs = [(a, b) for a, b in pairs if a != 0 or b == 0]
  tokens = np.array(pairs)
  mask = np.ones(tokens.shape, bool)
  if stop:
    mask[:, 1] = tokens[:, 0] != 0
  return tokens, mask


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def objective(logits, anchor, rewards, beta, stop):
  """E[(1 - beta) r - beta KL] in float64; KL summed over states, exactly."""
  (p0, p1), (q0, q1) = (
    (log_softmax(x[0]), log_softmax(x[1:])) for x in (logits, anchor)
  )
  tokens, mask = list_responses(stop)
  expected = 0.0
  for (a, b), m, r in zip(tokens, mask, rewards, strict=True):
    expected += np.exp(p0[a] + m[1] * p1[a, b]) * r
  divergence = np.sum(np.exp(p0) * (p0 - q0))
  for a in range(1 if stop else 0, VOCAB):
    divergence += np.exp(p0[a]) * np.sum(np.exp(p1[a]) * (p1[a] - q1[a]))
  return (1 - beta) * expected - beta * divergence


def true_gradient(logits, *rest):
  gradient = np.zeros(logits.shape)
  for index in np.ndindex(logits.shape):
    step = np.zeros(logits.shape)
    step[index] = 1e-5
    up, down = (objective(x, *rest) for x in (logits + step, logits - step))
    gradient[index] = (up - down) / 2e-5
  return gradient


def toy(stop, seed=0):
  """Policy and anchor logits `[1 + V, V]`: first token, then after each."""
  rng = np.random.default_rng(seed)
  logits, anchor = rng.normal(size=(2, 1 + VOCAB, VOCAB))
  rewards = rng.normal(size=len(list_responses(stop)[0]))
  baseline = rng.normal(size=1 + VOCAB)
  return logits, anchor, rewards, baseline


def expected_loss(
  logits, anchor, rewards, baseline, *, beta, stop, estimator, dirty=False
):
  """Sum over responses of probability times the sequence-summed loss."""
  tokens, mask = list_responses(stop)
  anchor, rewards, baseline = (
    jnp.asarray(x).astype(jnp.float32) for x in (anchor, rewards, baseline)
  )

  def logprobs(table):
    table = jax.nn.log_softmax(table)
    tokenwise = jnp.stack(
      [table[0][tokens[:, 0]], table[1 + tokens[:, 0], tokens[:, 1]]], axis=1
    )
    return jnp.where(mask, tokenwise, jnp.nan) if dirty else tokenwise

  policy = masked.keep(logprobs(logits), mask)
  weights = jax.lax.stop_gradient(jnp.exp(jnp.sum(policy, axis=1)))
  shaped = advantages.shape_rewards(
    sequence_rewards=rewards,
    kl=estimator(logprobs(logits), logprobs(anchor)),
    response_mask=mask,
    beta=beta,
  )
  returns = advantages.returns_to_go(shaped, mask)
  # V(s_t) sees the tokens before t only, or it would bias the gradient.
  values = jnp.stack(
    [jnp.full(len(tokens), baseline[0]), baseline[1 + tokens[:, 0]]], axis=1
  )
  loss = policy_gradient.reinforce_loss(
    logprobs=policy,
    advantages=advantages.reinforce_advantages(returns, values),
  )
  return jnp.sum(weights * masked.masked_sum(loss, mask, axis=1))


expected_gradient = jax.jit(
  jax.grad(expected_loss), static_argnames=("stop", "estimator", "dirty")
)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 1.0])
def test_reinforce_has_the_gradient_of_the_objective(beta, stop):
  logits, anchor, rewards, baseline = toy(stop)
  gradient = expected_gradient(
    jnp.asarray(logits, jnp.float32),
    anchor,
    rewards,
    baseline,
    beta=beta,
    stop=stop,
    estimator=kl.kl_k1,
    dirty=True,
  )
  expected = true_gradient(logits, anchor, rewards, beta, stop)
  np.testing.assert_allclose(-gradient, expected, rtol=1e-4, atol=2e-6)
  if stop:  # nothing is ever sampled after the stop token
    assert np.all(np.asarray(gradient)[1] == 0.0)


@pytest.mark.parametrize("estimator", [kl.kl_k2, kl.kl_k3])
def test_other_estimators_in_the_reward_are_biased(estimator):
  """So that the test above would notice a swap, and the docstring is true."""
  logits, anchor, rewards, baseline = toy(stop=False)
  gradient = expected_gradient(
    jnp.asarray(logits, jnp.float32),
    anchor,
    rewards,
    baseline,
    beta=0.5,
    stop=False,
    estimator=estimator,
  )
  expected = true_gradient(logits, anchor, rewards, 0.5, False)
  assert np.max(np.abs(-gradient - expected)) > 0.01


def test_value_model_learns_the_expected_return():
  """The minimum of the squared error over all responses is E[Z_t | s_t]."""
  tokens, mask = list_responses(stop=False)
  logits, _, rewards, _ = toy(stop=False)
  p1 = np.exp(log_softmax(logits[1:]))
  expected = np.sum(p1 * rewards.reshape(VOCAB, VOCAB), axis=1)
  weights = p1.reshape(-1).astype(np.float32)
  returns = np.tile(rewards[:, None], 2).astype(np.float32)

  def loss(v):
    values = jnp.stack([jnp.zeros(16), v[tokens[:, 0]]], axis=1)
    error = policy_gradient.value_loss(values=values, returns=returns)
    return jnp.sum(weights * masked.keep(error, mask)[:, 1])

  gradient = jax.jit(jax.grad(loss))(expected.astype(np.float32))
  np.testing.assert_allclose(gradient, np.zeros(VOCAB), atol=1e-6)
