"""One random draw: its distribution, and the specs that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles, sampling
from perl_jax.sampling import SamplingSpec
from tests import toys
from tests.models import reference

SMALL = toys.config("tiny", vocab_size=7)
ROWS = 8192
# 99.99 % of chi-square with 48 degrees of freedom.
CHI_SQUARE_48 = 95.0


def joint(params, prompt, temperature, top_k, top_p):
  """Probabilities `[V, V]` of two tokens after a prompt, from NumPy."""

  def one(ids):
    logits = reference.logits(SMALL, params, ids)[-1] / temperature
    return reference.softmax(filter_slowly(logits, top_k, top_p))

  first = one(prompt)
  return np.stack([p * one([*prompt, v]) for v, p in enumerate(first)])


def filter_slowly(logits, top_k, top_p):
  """The definition, token by token."""
  out = np.array(logits, np.float64)
  if top_k:
    for i, x in enumerate(logits):
      # More than k - 1 tokens are more likely: not among the first k.
      if sum(y > x for y in logits) >= top_k:
        out[i] = -np.inf
  if top_p < 1.0:
    weights = np.exp(out - np.max(out))
    probs = weights / weights.sum()
    for i, p in enumerate(probs):
      if sum(q for q in probs if q > p) >= top_p:
        out[i] = -np.inf
  return out


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"),
  [(0.6, 0, 1.0), (0.8, 5, 0.75)],
)
def test_frequencies_are_the_distribution(temperature, top_k, top_p):
  """Two tokens, 49 cells, 8192 rows with their own keys; no stop token."""
  params = toys.random_params(SMALL)
  prompt = np.array([4, 1, 6], np.int32)
  spec = SamplingSpec(
    response_len=2,
    stop_ids=(),
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
  )
  backbone = roles.Backbone(SMALL, toys.NO_LORA)
  found = jax.jit(sampling.make_sampler(backbone, spec))(
    params,
    np.broadcast_to(prompt, (ROWS, 3)),
    np.full(ROWS, 3, np.int32),
    np.arange(ROWS, dtype=np.int32),
    jax.random.key(0),
  )
  found = jax.device_get(found)
  assert np.all(found.mask) and not np.any(found.stopped)
  counts = np.zeros((7, 7))
  np.add.at(counts, tuple(found.tokens.T), 1)
  expected = ROWS * joint(params, prompt, temperature, top_k, top_p)
  possible = expected > 0
  assert not np.any(counts[~possible])
  if top_k:
    assert not np.all(possible)
  # Cells too rare for the approximation are one cell together.
  rare = expected < 5
  cells = [
    (np.sum(counts[rare]), np.sum(expected[rare])),
    *zip(counts[~rare], expected[~rare]),
  ]
  statistic = sum((n - e) ** 2 / e for n, e in cells if e > 0)
  assert statistic < CHI_SQUARE_48


@pytest.mark.parametrize("top_k", [0, 1, 3, 6, 50])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.9, 1.0])
def test_filter_against_a_loop(rng, top_k, top_p):
  logits = rng.normal(size=(40, 6)).astype(np.float32) * 2
  logits[10:20] = np.round(logits[10:20])  # many ties
  found = np.asarray(sampling.filter_logits(jnp.asarray(logits), top_k, top_p))
  expected = np.stack([filter_slowly(row, top_k, top_p) for row in logits])
  np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
  # What is kept is not touched.
  kept = np.isfinite(found)
  np.testing.assert_array_equal(found[kept], logits[kept])
  assert np.all(found[~kept] == -np.inf)
  assert np.all(kept[np.arange(40), logits.argmax(axis=1)])


def test_filter_by_hand():
  """Probabilities 0.5, 0.25, 0.125, 0.125."""
  logits = jnp.log(jnp.array([0.125, 0.5, 0.125, 0.25]))

  def kept(top_k, top_p):
    finite = np.isfinite(sampling.filter_logits(logits, top_k, top_p))
    return np.flatnonzero(finite).tolist()

  assert kept(0, 1.0) == [0, 1, 2, 3]
  assert kept(1, 1.0) == [1]
  assert kept(3, 1.0) == [0, 1, 2, 3]  # the two at the end are a tie
  assert kept(0, 0.4) == [1]
  assert kept(0, 0.6) == [1, 3]
  assert kept(0, 0.8) == [0, 1, 2, 3]
  # p is of what top-k left: 0.5 of 0.75 is 2/3.
  assert kept(2, 0.6) == [1]
  assert kept(2, 0.7) == [1, 3]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(temperature=0.0), r"temperature=0\.0 must be above 0; use greedy"),
    (dict(temperature=-1.0), r"temperature=-1\.0"),
    (dict(temperature=float("nan")), r"temperature=nan"),
    (dict(top_p=0.0), r"top_p=0\.0 must be in \(0, 1\]"),
    (dict(top_p=1.1), r"top_p=1\.1"),
    (dict(top_k=-1), r"top_k=-1"),
    (dict(response_len=0), r"response_len=0"),
  ],
)
def test_specs_that_draw_nothing_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    SamplingSpec(**dict(response_len=4, stop_ids=(1,)) | fields)
