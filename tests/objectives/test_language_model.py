"""Token log-probabilities against a float64 NumPy softmax."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from perl_jax.objectives import language_model, masked

short = hypothesis.settings(max_examples=30, deadline=None, derandomize=True)


score = jax.jit(
  language_model.token_logprobs,
  static_argnames=(
    "temperature",
    "softcap",
    "chunk_size",
    "entropy",
    "correct",
  ),
)


def draw(seed, batch, time, width=5, vocab=11):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(batch, time, width)).astype(np.float32)
  kernel = rng.normal(size=(width, vocab)).astype(np.float32)
  targets = rng.integers(0, vocab, (batch, time)).astype(np.int32)
  return hidden, kernel, targets


def score_slowly(hidden, kernel, targets, temperature=1.0, softcap=None):
  """Log-probability, entropy, correctness: one token at a time, in float64."""
  shape = targets.shape
  logprobs, entropy = np.zeros(shape), np.zeros(shape)
  correct = np.zeros(shape, bool)
  for index in np.ndindex(shape):
    logits = hidden[index].astype(np.float64) @ kernel.astype(np.float64)
    if softcap is not None:
      logits = softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    logprobs[index] = np.log(p[targets[index]])
    entropy[index] = -np.sum(p * np.log(p))
    correct[index] = np.argmax(p) == targets[index]
  return logprobs, entropy, correct


def score_at_once(hidden, kernel, targets):
  """The formula with a `[B, T, V]` array, for its gradients."""
  table = jax.nn.log_softmax(hidden @ kernel)
  return jnp.take_along_axis(table, targets[..., None], -1)[..., 0]


def test_hand_computed():
  # The logits are [log 1, log 2, log 5], so the probabilities 1/8, 2/8, 5/8.
  hidden = jnp.ones((1, 3, 1))
  kernel = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))
  scores = language_model.token_logprobs(
    hidden, kernel, jnp.array([[0, 1, 2]]), entropy=True, correct=True
  )
  p = np.array([1, 2, 5]) / 8
  np.testing.assert_allclose(scores.logprobs[0], np.log(p), rtol=1e-6)
  np.testing.assert_allclose(
    scores.entropy[0], [-np.sum(p * np.log(p))] * 3, rtol=1e-6
  )
  np.testing.assert_array_equal(scores.correct[0], [False, False, True])
  # Temperature 1/2 squares the odds: 1, 4, 25.
  sharp = language_model.token_logprobs(
    hidden, kernel, jnp.array([[0, 1, 2]]), temperature=0.5
  )
  np.testing.assert_allclose(
    sharp.logprobs[0], np.log(np.array([1, 4, 25]) / 30), rtol=1e-6
  )
  assert sharp.entropy is None and sharp.correct is None


# Few shapes, many values: every new shape is compiled. The batches are one
# chunk, several, several with padding, and more rows than a chunk.
@short
@hypothesis.given(
  case=st.sampled_from(
    [
      ((1, 1, 8), (1.0, None)),
      ((2, 6, 4), (0.7, None)),
      ((3, 7, 8), (0.7, 4.0)),
      ((4, 3, 1), (3.0, 30.0)),
    ]
  ),
  seed=st.integers(0, 99),
)
def test_equals_slow_loop(case, seed):
  (batch, time, chunk_size), options = case
  arrays = draw(seed, batch, time)
  scores = score(
    *arrays,
    temperature=options[0],
    softcap=options[1],
    chunk_size=chunk_size,
    entropy=True,
    correct=True,
  )
  logprobs, entropy, correct = score_slowly(*arrays, *options)
  np.testing.assert_allclose(scores.logprobs, logprobs, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(scores.entropy, entropy, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(scores.correct, correct)


@pytest.mark.parametrize("chunk_size", [1, 7])
def test_gradients_equal_the_unchunked_formula(chunk_size):
  hidden, kernel, targets = draw(0, 3, 8)
  weights = np.random.default_rng(1).normal(size=(3, 8))

  def chunked(h, w):
    scores = language_model.token_logprobs(
      h, w, targets, chunk_size=chunk_size, entropy=True
    )
    return jnp.sum(scores.logprobs * weights + scores.entropy**2)

  def at_once(h, w):
    table = jax.nn.log_softmax(h @ w)
    entropy = -jnp.sum(jnp.exp(table) * table, -1)
    return jnp.sum(score_at_once(h, w, targets) * weights + entropy**2)

  for ours, theirs in zip(
    jax.jit(jax.grad(chunked, argnums=(0, 1)))(hidden, kernel),
    jax.jit(jax.grad(at_once, argnums=(0, 1)))(hidden, kernel),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradient_with_softcap_equals_finite_differences():
  hidden, kernel, targets = draw(2, 1, 2, width=3, vocab=4)

  def total(h):
    return np.sum(score_slowly(h, kernel, targets, 0.7, 2.0)[0])

  expected = np.zeros(hidden.shape)
  for index in np.ndindex(hidden.shape):
    step = np.zeros(hidden.shape)
    step[index] = 1e-6
    expected[index] = (total(hidden + step) - total(hidden - step)) / 2e-6
  gradient = jax.jit(
    jax.grad(
      lambda h: jnp.sum(
        language_model.token_logprobs(
          h, kernel, targets, temperature=0.7, softcap=2.0
        ).logprobs
      )
    )
  )(hidden)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_tokens_change_nothing(bad):
  hidden, kernel, targets = draw(3, 2, 6)
  mask = np.ones((2, 6), bool)
  mask[0, 4:] = mask[1, 0] = False
  dirty = np.where(mask[..., None], hidden, np.float32(bad))

  def total(h):
    clean = jnp.where(mask[..., None], h, 0.0)
    scores = language_model.token_logprobs(clean, kernel, targets)
    return masked.masked_mean(
      language_model.next_token_loss(scores.logprobs), mask
    )

  expected = -np.mean(score_slowly(hidden, kernel, targets)[0][mask])
  step = jax.jit(jax.value_and_grad(total))
  value, gradient = step(dirty)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_array_equal(gradient, step(hidden)[1])
  assert np.all(np.asarray(gradient)[~mask] == 0.0)
  # Even without cleaning, a bad state spoils its own token only.
  scores = score(dirty, kernel, targets, chunk_size=4)
  np.testing.assert_allclose(
    -np.mean(np.asarray(scores.logprobs)[mask]), expected, rtol=1e-5
  )


def masked_loss(hidden, kernel, targets, mask):
  scores = language_model.token_logprobs(hidden, kernel, targets)
  return masked.masked_mean(-scores.logprobs, mask)


@pytest.mark.parametrize("target", [-100, -1, 11, 2**30])
def test_target_outside_the_vocabulary_is_nan_until_masked(target):
  hidden, kernel, targets = draw(4, 2, 3)
  targets[1, 2] = target

  step = jax.jit(jax.value_and_grad(masked_loss, argnums=(0, 1)))
  assert np.isnan(step(hidden, kernel, targets, np.ones((2, 3), bool))[0])
  mask = np.arange(6).reshape(2, 3) < 5
  value, gradients = step(hidden, kernel, targets, mask)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in gradients)
  assert np.all(gradients[0][1, 2] == 0.0)


def test_float32_logits_from_bfloat16():
  hidden, kernel, targets = draw(5, 2, 3, width=256, vocab=32)
  half = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
  scores = score(*half, targets, entropy=True)
  assert scores.logprobs.dtype == scores.entropy.dtype == jnp.float32
  rounded = [np.asarray(x.astype(jnp.float32)) for x in half]
  logprobs, _, _ = score_slowly(*rounded, targets)
  # Logits are around 16 here; rounding them to bfloat16 would cost 0.03.
  np.testing.assert_allclose(scores.logprobs, logprobs, rtol=0, atol=1e-4)


def test_large_logits_stay_finite():
  scores = language_model.token_logprobs(
    jnp.full((1, 1, 1), 1e4),
    jnp.array([[1.0, -1.0]]),
    jnp.array([[1]]),
    entropy=True,
  )
  np.testing.assert_allclose(scores.logprobs, [[-2e4]])
  np.testing.assert_allclose(scores.entropy, [[0.0]])


def test_scores_are_of_the_logits_that_are_sampled():
  hidden, kernel, targets = draw(6, 2, 3)
  table = jax.nn.log_softmax(
    language_model.head_logits(hidden, kernel, temperature=0.7, softcap=3.0)
  )
  scores = language_model.token_logprobs(
    hidden, kernel, targets, temperature=0.7, softcap=3.0
  )
  np.testing.assert_allclose(
    scores.logprobs,
    np.take_along_axis(np.asarray(table), targets[..., None], -1)[..., 0],
    rtol=1e-5,
  )


def test_equal_logits_count_as_the_first():
  scores = language_model.token_logprobs(
    jnp.zeros((1, 2, 1)), jnp.ones((1, 3)), jnp.array([[0, 1]]), correct=True
  )
  np.testing.assert_array_equal(scores.correct, [[True, False]])


def test_equal_under_jit():
  arrays = draw(7, 3, 5)
  options = {"chunk_size": 6, "entropy": True, "correct": True}
  plain = language_model.token_logprobs(*arrays, **options)
  for ours, jitted in zip(plain, score(*arrays, **options), strict=True):
    np.testing.assert_allclose(ours, jitted, rtol=1e-5, atol=1e-6)


def test_next_token_loss():
  np.testing.assert_array_equal(
    language_model.next_token_loss(jnp.array([[-1.5, 0.0]])), [[1.5, 0.0]]
  )
  with pytest.raises(AssertionError, match="expected float32"):
    language_model.next_token_loss(jnp.zeros((1, 2), jnp.bfloat16))


@pytest.mark.parametrize(
  "option, value",
  [
    ("temperature", 0.0),
    ("temperature", -1.0),
    ("softcap", 0.0),
    ("chunk_size", 0),
  ],
)
def test_senseless_options_are_refused(option, value):
  with pytest.raises(ValueError, match=f"{option} must be .*got {value}"):
    language_model.token_logprobs(*draw(0, 1, 2), **{option: value})


def test_senseless_arrays_are_refused():
  hidden, kernel, targets = draw(0, 2, 3)
  for arrays in (
    (hidden[0], kernel, targets),
    (hidden, kernel.T, targets),
    (hidden, kernel, targets[:, 1:]),  # a shift that only one side made
    (hidden, kernel, targets.astype(np.float32)),
  ):
    with pytest.raises(AssertionError):
      language_model.token_logprobs(*arrays)


def test_likelihood_features_by_a_loop():
  rng = np.random.default_rng(0)
  logprobs = -rng.exponential(size=(4, 5)).astype(np.float32)
  mask = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1] * 5, [0] * 5], bool)
  found = jax.jit(language_model.likelihood_features)(logprobs, mask)
  for row in range(3):
    chances = [float(np.exp(x)) for x in logprobs[row][mask[row]]]
    geometric = np.prod(chances) ** (1 / len(chances))
    np.testing.assert_allclose(found[row], [geometric, min(chances)], rtol=1e-6)
  np.testing.assert_array_equal(found[3], [1.0, 1.0])
  # What is masked changes neither value nor gradient, not even if it is -inf.
  worse = jnp.where(mask, logprobs, -jnp.inf)
  grad = jax.grad(lambda x: language_model.likelihood_features(x, mask).sum())
  np.testing.assert_array_equal(
    found, jax.jit(language_model.likelihood_features)(worse, mask)
  )
  np.testing.assert_array_equal(grad(worse), grad(logprobs))
  assert not np.any(np.asarray(grad(worse))[~mask])
