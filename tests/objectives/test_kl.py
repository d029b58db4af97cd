"""KL estimators against enumeration over the vocabulary, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import kl, masked

FORMULAS = [kl.kl_k1, kl.kl_k2, kl.kl_k3]


def softmax(logits):
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def distributions(seed, size=6):
  logits = np.random.default_rng(seed).normal(size=(2, size))
  return softmax(logits)


def test_hand_computed():
  policy = jnp.log(jnp.array([[0.5, 0.25, 0.5]]))
  anchor = jnp.log(jnp.array([[0.25, 0.5, 0.5]]))
  two = np.log(2.0)
  expected = {
    kl.kl_k1: [two, -two, 0.0],
    kl.kl_k2: [two**2 / 2, two**2 / 2, 0.0],
    kl.kl_k3: [0.5 - 1 + two, 2 - 1 - two, 0.0],
  }
  for estimator, values in expected.items():
    np.testing.assert_allclose(
      estimator(policy, anchor)[0], values, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("seed", range(2))
def test_expected_values(seed):
  """E over the policy: k1 and k3 give the KL, k2 something else."""
  p, q = distributions(seed)
  exact = np.sum(p * np.log(p / q))
  logp, logq = (jnp.log(jnp.array([x], jnp.float32)) for x in (p, q))
  mean = [np.sum(p * estimator(logp, logq)[0]) for estimator in FORMULAS]
  np.testing.assert_allclose([mean[0], mean[2]], exact, rtol=1e-5)
  assert abs(mean[1] - exact) > 1e-3


def test_k2_has_the_gradient_of_k3_times_the_ratio():
  """In the first update: so docs/from-trl.md says of what TRL has in its loss.

  r (exp(q - p) - (q - p) - 1), r = exp(p - stopgrad p); k3 alone has another.
  """
  p, q = jnp.log(jnp.array(distributions(3), jnp.float32))[:, None]

  def in_trl(p, corrected):
    k3 = jnp.exp(q - p) - (q - p) - 1
    ratio = jnp.exp(p - jax.lax.stop_gradient(p))
    return jnp.sum(k3 * ratio if corrected else k3)

  found = {
    name: jax.grad(lambda p, n=name: jnp.sum(kl.kl_loss(n, p, q)))(p)
    for name in ("k2", "k3")
  }
  with_ratio, without = (jax.grad(in_trl)(p, c) for c in (True, False))
  np.testing.assert_allclose(found["k2"], with_ratio, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found["k3"], without, rtol=1e-4, atol=1e-6)
  assert np.abs(with_ratio - without).max() > 0.1


@pytest.mark.parametrize("seed", range(2))
def test_expected_gradients_as_a_loss(seed):
  """The last column of the table in the module docstring."""
  p, q = distributions(seed)
  logits = np.log(p).astype(np.float32)
  anchor = np.log([q]).astype(np.float32)

  def as_loss(estimator):
    def loss(x):
      return jnp.sum(p * estimator(jax.nn.log_softmax(x)[None], anchor)[0])

    return jax.jit(jax.grad(loss))(logits)

  # d KL(p||q) / d logits = p (log p/q - KL); d KL(q||p) / d logits = p - q.
  reverse = p * (np.log(p / q) - np.sum(p * np.log(p / q)))
  expected = [np.zeros_like(p), reverse, p - q]
  for estimator, gradient in zip(FORMULAS, expected, strict=True):
    np.testing.assert_allclose(
      as_loss(estimator), gradient, rtol=1e-4, atol=1e-6
    )


def expected_gradient(formula, weight, p):
  """d sum_v p_v (weight log p_v + formula(log p)_v) / d logits, p held."""
  p, weight = jnp.asarray(p, jnp.float32), jnp.asarray(weight, jnp.float32)

  def loss(x):
    logp = jax.nn.log_softmax(x)
    return jnp.sum(p * (weight * logp + formula(logp)))

  return jax.grad(loss)(jnp.log(p))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("place", kl.PLACES)
@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_what_is_refused_has_the_wrong_gradient(estimator, place, seed):
  """What is allowed has that of KL(policy || anchor), but for k3 as a loss."""
  p, q = distributions(seed)
  anchor = jnp.log(jnp.array([q], jnp.float32))
  formula = {"k1": kl.kl_k1, "k2": kl.kl_k2, "k3": kl.kl_k3}.get(estimator)

  def values(logp):
    if formula is None:  # one number for the state, whatever the token
      return jnp.full(6, jnp.sum(jnp.exp(logp) * (logp - anchor[0])))
    return formula(logp[None], anchor)[0]

  divergence = np.sum(p * np.log(p / q))
  reverse = p * (np.log(p / q) - divergence)
  if place == "reward":  # the score function times the estimate, no more
    weight = values(jnp.log(jnp.asarray(p, jnp.float32)))
    found = expected_gradient(lambda logp: 0.0 * logp, weight, p)
  else:
    found = expected_gradient(values, np.zeros(6), p)
  if (estimator, place) == ("k3", "loss"):
    np.testing.assert_allclose(found, p - q, rtol=1e-4, atol=1e-6)
    kl.require_kl(estimator, place)
  elif np.allclose(found, reverse, rtol=1e-4, atol=1e-6):
    kl.require_kl(estimator, place)
  else:
    assert np.max(np.abs(found - reverse)) > 0.01
    with pytest.raises(ValueError, match=f"'{estimator}' in the {place}: "):
      kl.require_kl(estimator, place)


def test_unknown_names_of_estimators_and_places():
  with pytest.raises(ValueError, match="KL estimator 'k4' is unknown: choose"):
    kl.require_kl("k4", "loss")
  with pytest.raises(ValueError, match="KL place 'value' is unknown: choose"):
    kl.require_kl("k1", "value")
  assert all(
    e in kl.ESTIMATORS and place in kl.PLACES for e, place in kl.REFUSED
  )


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_loss_pulls_the_policy_alone(estimator):
  policy, anchor = -np.random.default_rng(1).random((2, 3, 4), np.float32)

  def total(p, q):
    return jnp.sum(kl.kl_loss(estimator, p, q))

  d = policy.astype(np.float64) - anchor
  value = {"k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[estimator]
  slope = {"k2": d, "k3": 1 - np.exp(-d)}[estimator]
  for step in (
    jax.value_and_grad(total, argnums=(0, 1)),
    jax.jit(jax.value_and_grad(total, argnums=(0, 1))),
  ):
    found, (mine, others) = step(policy, anchor)
    np.testing.assert_allclose(found, value.sum(), rtol=1e-5)
    np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(others, np.zeros((3, 4)))


def test_kl_loss_refuses_what_it_cannot_or_should_not():
  zero = jnp.zeros((1, 1))
  with pytest.raises(ValueError, match="'k1' in the loss: its gradient is 0"):
    kl.kl_loss("k1", zero, zero)
  with pytest.raises(ValueError, match="call exact_kl with hidden states"):
    kl.kl_loss("exact", zero, zero)


def test_adapt_beta_hand_computed():
  def adapt(beta, measured):
    return kl.adapt_beta(beta, measured, target=4.0, horizon=100, batch_size=50)

  for run in (adapt, jax.jit(adapt)):
    found = [run(0.1, measured) for measured in (4.0, 4.4, 40.0, 3.6, -9.0)]
    # 1 + e / 2 with e = 0, 0.1, 0.2 (held), -0.1, -0.2 (held).
    np.testing.assert_allclose(
      found, [0.1, 0.105, 0.11, 0.095, 0.09], rtol=1e-6
    )
    assert all(beta.dtype == jnp.float32 for beta in found)
    assert run(0.99, 40.0) == 1.0 and run(0.0, 40.0) == 0.0


def test_adapt_beta_brings_the_kl_to_its_target():
  """On a policy whose KL falls as beta grows, as it does in training."""
  beta = jnp.float32(0.01)
  for _ in range(400):
    beta = kl.adapt_beta(
      beta, 1.0 / beta, target=5.0, horizon=100, batch_size=10
    )
  np.testing.assert_allclose(1.0 / beta, 5.0, rtol=1e-3)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"target": 0.0}, "target must be > 0 nats, got 0.0"),
    ({"target": float("nan")}, "target must be > 0 nats, got nan"),
    ({"horizon": 5}, "horizon must be at least batch_size, got 5 and 10"),
    ({"batch_size": 0}, "got 100 and 0"),
  ],
)
def test_adapt_beta_numbers_outside_their_range(changed, message):
  fields = {"target": 4.0, "horizon": 100, "batch_size": 10} | changed
  with pytest.raises(ValueError, match=message):
    kl.adapt_beta(0.1, 1.0, **fields)


def test_signs_and_no_clamping():
  policy = jnp.array([[-60.0, -0.1, -2.0]])
  anchor = jnp.array([[-0.1, -60.0, -2.0]])
  assert kl.kl_k1(policy, anchor)[0, 0] < -59
  for estimator in (kl.kl_k2, kl.kl_k3):
    assert np.all(np.asarray(estimator(policy, anchor)) >= 0)
  np.testing.assert_allclose(
    kl.kl_k3(policy, anchor)[0, 0], np.exp(59.9), rtol=1e-4
  )


@pytest.mark.parametrize("estimator", FORMULAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1000.0])
def test_masked_tokens_change_nothing(estimator, bad):
  mask = np.array([[True, True, False]])
  policy = np.array([[-1.0, -2.0, bad]], np.float32)
  anchor = np.array([[-1.5, -1.0, -3.0]], np.float32)

  def total(p, q):
    tokens = estimator(masked.keep(p, mask), masked.keep(q, mask))
    return masked.masked_sum(tokens, mask)

  expected = np.sum(estimator(policy[:, :2], anchor[:, :2]))
  step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  value, gradients = step(policy, anchor)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for gradient in np.asarray(gradients):
    assert np.all(np.isfinite(gradient))
    assert gradient[0, 2] == 0.0 and np.all(gradient[0, :2] != 0.0)


@pytest.mark.parametrize("estimator", FORMULAS)
def test_equal_under_jit_and_strict_about_types(estimator):
  policy, anchor = -np.random.default_rng(0).random((2, 3, 4), np.float32)
  np.testing.assert_allclose(
    jax.jit(estimator)(policy, anchor),
    estimator(policy, anchor),
    rtol=1e-5,
    atol=1e-7,
  )
  with pytest.raises(AssertionError, match="expected float32"):
    estimator(policy, jnp.asarray(anchor, jnp.bfloat16))
  with pytest.raises(AssertionError, match="equal_shape"):
    estimator(policy, anchor[:, :1])


def draw(seed, batch=2, time=5, width=4, vocab=7):
  rng = np.random.default_rng(seed)
  return {
    "policy_hidden": rng.normal(size=(batch, time, width)).astype(np.float32),
    "policy_head": rng.normal(size=(width, vocab)).astype(np.float32),
    "anchor_hidden": rng.normal(size=(batch, time, width)).astype(np.float32),
    "anchor_head": rng.normal(size=(width, vocab)).astype(np.float32),
  }


@pytest.mark.parametrize(
  "chunk_size, softcap", [(1, None), (6, 2.0), (512, None)]
)
def test_exact_kl_equals_slow_loop(chunk_size, softcap):
  arrays = draw(0)

  def probabilities(role, index):
    wide = arrays[role + "_hidden"][index].astype(np.float64)
    logits = wide @ arrays[role + "_head"]
    if softcap is not None:
      logits = softcap * np.tanh(logits / softcap)
    return softmax(logits / 0.7)

  expected = np.zeros((2, 5))
  for index in np.ndindex(2, 5):
    p, q = probabilities("policy", index), probabilities("anchor", index)
    expected[index] = sum(
      a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True)
    )
  options = {
    "temperature": 0.7,
    "softcap": softcap,
    "chunk_size": chunk_size,
  }
  jitted = jax.jit(lambda a: kl.exact_kl(**a, **options))(arrays)
  assert jitted.dtype == jnp.float32
  np.testing.assert_allclose(jitted, expected, rtol=1e-4, atol=1e-6)
  if chunk_size == 6:
    plain = kl.exact_kl(**arrays, **options)
    np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-6)


def test_exact_kl_of_equal_models_is_exactly_zero():
  arrays = draw(1)
  arrays["anchor_hidden"] = arrays["policy_hidden"]
  arrays["anchor_head"] = arrays["policy_head"]
  np.testing.assert_array_equal(kl.exact_kl(**arrays), np.zeros((2, 5)))


def test_exact_kl_gradient_equals_the_unchunked_formula():
  arrays = draw(2)

  def at_once(a):
    p = jax.nn.log_softmax(a["policy_hidden"] @ a["policy_head"])
    q = jax.nn.log_softmax(a["anchor_hidden"] @ a["anchor_head"])
    return jnp.sum(jnp.sum(jnp.exp(p) * (p - q), -1) ** 2)

  ours = jax.jit(
    jax.grad(lambda a: jnp.sum(kl.exact_kl(**a, chunk_size=4) ** 2))
  )(arrays)
  theirs = jax.jit(jax.grad(at_once))(arrays)
  for name in arrays:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_exact_kl_needs_no_memory_for_all_logits():
  arrays = draw(3, batch=4, time=64, width=8, vocab=4096)
  step = jax.value_and_grad(lambda a: jnp.sum(kl.exact_kl(**a, chunk_size=16)))
  compiled = jax.jit(step).lower(arrays).compile()
  all_logits_bytes = 4 * 64 * 4096 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < all_logits_bytes / 2


def test_exact_kl_refuses_different_vocabularies():
  arrays = draw(4)
  arrays["anchor_head"] = arrays["anchor_head"][:, :6]
  with pytest.raises(AssertionError):
    kl.exact_kl(**arrays)
