"""What the sampler draws, against loops of full passes of the NumPy model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, sampling, scoring
from perl_jax.models.lora import LoraSpec
from perl_jax.sampling import SamplingSpec
from tests import toys
from tests.models import reference

SPEC = LoraSpec(rank=2, alpha=2.0)
PROMPT_LEN, RESPONSE_LEN = 6, 8
LENGTHS = np.array([6, 1, 4, 3], np.int32)


@functools.cache
def model(name):
  # A cap that moves probabilities enough to be seen in single draws.
  cfg = toys.config(name, final_softcap=2.0)
  return roles.Backbone(cfg, SPEC), toys.random_params(cfg, SPEC)


def prompts():
  """(left-padded prompts, lengths, the prompts one by one)."""
  rows = [toys.random_tokens(40 + i, n) for i, n in enumerate(LENGTHS)]
  padded = np.zeros((len(rows), PROMPT_LEN), np.int32)
  for row, ids in enumerate(rows):
    padded[row, PROMPT_LEN - len(ids) :] = ids
  return padded, LENGTHS, rows


def continue_slowly(name, params, prompt, pick, stop_ids):
  """Appends `pick(step, logits)` of full passes up to the first stop token."""
  backbone, _ = model(name)
  ids = list(prompt)
  for step in range(RESPONSE_LEN):
    logits = reference.logits(
      backbone.config, params, ids, lora_scale=SPEC.scale
    )
    ids.append(pick(step, logits[-1]))
    if ids[-1] in stop_ids:
      break
  return ids[len(prompt) :]


def check(samples, expected, stop_ids, pad_id):
  """Responses, masks and flags against the lists of a slow loop."""
  assert samples.tokens.dtype == np.int32
  assert samples.mask.dtype == samples.stopped.dtype == bool
  for row, response in enumerate(expected):
    count = len(response)
    assert samples.tokens[row, :count].tolist() == response, row
    assert samples.mask[row].tolist() == [
      t < count for t in range(RESPONSE_LEN)
    ]
    assert np.all(samples.tokens[row, count:] == pad_id)
    assert bool(samples.stopped[row]) == (response[-1] in stop_ids)


def test_greedy_is_the_repeated_argmax_of_full_passes():
  """Past the window of 5 tokens in any row."""
  name = "gemma3_tiny"
  backbone, params = model(name)
  padded, lengths, rows = prompts()

  def greedy(stop_ids):
    return [
      continue_slowly(name, params, row, lambda _, x: int(x.argmax()), stop_ids)
      for row in rows
    ]

  # Stops that end some rows early, at the first of several; pad is a stop id.
  free = greedy(())
  stop_ids = (free[0][3], free[1][1])
  expected = greedy(stop_ids)
  assert len({len(response) for response in expected}) > 1
  pad_id = stop_ids[0]
  spec = SamplingSpec(
    response_len=RESPONSE_LEN,
    stop_ids=stop_ids,
    pad_id=pad_id,
    temperature=0.0,
    greedy=True,
  )
  sample = jax.jit(sampling.make_sampler(backbone, spec))
  found = sample(params, padded, lengths, np.arange(4), jax.random.key(0))
  check(jax.device_get(found), expected, stop_ids, pad_id)


TEMPERATURE = 1.3
DRAWN_FROM = "gemma2_tiny"
ROW_IDS = (5, 0, 2**31 - 1, 7)


def draw_slowly(stop_ids):
  """Each token is the Gumbel draw of its row's and step's key."""
  _, params = model(DRAWN_FROM)
  key, responses = jax.random.key(0), []
  for row_id, prompt in zip(ROW_IDS, prompts()[2]):
    row_key = jax.random.fold_in(key, row_id)

    def pick(step, logits, row_key=row_key):
      noise = jax.random.gumbel(
        jax.random.fold_in(row_key, step), logits.shape, jnp.float32
      )
      return int(np.argmax(logits / TEMPERATURE + noise))

    responses.append(
      continue_slowly(DRAWN_FROM, params, prompt, pick, stop_ids)
    )
  return responses


@functools.cache
def drawing():
  """(sampler, parameters, shapes it was traced for, its stop tokens)."""
  backbone, params = model(DRAWN_FROM)
  # So that row 0 stops, and row 1 at once.
  free = draw_slowly(())
  stop_ids = (free[0][3], free[1][0])
  spec = SamplingSpec(
    response_len=RESPONSE_LEN,
    stop_ids=stop_ids,
    pad_id=28,
    temperature=TEMPERATURE,
  )
  sample, traces = sampling.make_sampler(backbone, spec), []

  def traced(*args):
    traces.append(args[1].shape)
    return sample(*args)

  return jax.jit(traced), params, traces, stop_ids


def draw(row_ids, order=None, params=None, key=0):
  sample, default, _, _ = drawing()
  padded, lengths, _ = prompts()
  order = list(range(4)) if order is None else order
  found = sample(
    default if params is None else params,
    padded[order],
    lengths[order],
    np.asarray(row_ids, np.int32),
    jax.random.key(key),
  )
  return jax.device_get(found)


def test_samples_are_draws_from_the_logits_of_full_passes():
  stop_ids = drawing()[3]
  found = draw(ROW_IDS)
  check(found, draw_slowly(stop_ids), stop_ids, pad_id=28)
  assert np.any(found.stopped) and not np.all(found.stopped)
  assert found.mask[1].tolist() == [True] + [False] * (RESPONSE_LEN - 1)


def test_a_response_depends_on_key_and_row_id_alone():
  plain = draw([0, 1, 2, 3])
  order = [2, 0, 3, 1]
  shuffled = draw(order, order=order)
  np.testing.assert_array_equal(shuffled.tokens, plain.tokens[order])
  np.testing.assert_array_equal(shuffled.mask, plain.mask[order])
  # Other rows beside it, in a batch of another size.
  alone = draw([2, 9], order=[2, 1])
  np.testing.assert_array_equal(alone.tokens[0], plain.tokens[2])
  assert not np.array_equal(draw([4, 5, 6, 7]).tokens, plain.tokens)
  assert not np.array_equal(draw([0, 1, 2, 3], key=1).tokens, plain.tokens)
  # The same prompt under two row ids gives two responses.
  twice = draw([0, 1, 2, 3], order=[2] * 4)
  assert len({tuple(row) for row in twice.tokens.tolist()}) > 1


def test_padding_tokens_change_no_sample():
  sample, params, _, _ = drawing()
  padded, lengths, _ = prompts()
  columns = np.arange(PROMPT_LEN) < PROMPT_LEN - lengths[:, None]
  filled = np.where(columns, 9, padded)
  assert not np.array_equal(filled, padded)
  found = sample(params, filled, lengths, np.arange(4), jax.random.key(0))
  np.testing.assert_array_equal(found.tokens, draw([0, 1, 2, 3]).tokens)


def test_a_changed_adapter_changes_the_samples_without_a_trace():
  """Parameters are arguments: the sampler never goes on with an old policy."""
  _, params, traces, _ = drawing()
  plain = draw([0, 1, 2, 3])
  before = len(traces)
  adapter, base = params_lib.partition(params, "lora")
  moved = params_lib.combine(toys.perturbed(adapter), base)
  found = draw([0, 1, 2, 3], params=moved)
  assert len(traces) == before
  assert not np.array_equal(found.tokens, plain.tokens)


def test_scoring_agrees_with_sampling():
  """Log-probs of `rollout` are of the distribution that was drawn from.

  That distribution, by the test of draws above: softmax(logits / temperature)
  of full passes, soft-cap included.
  """
  backbone, params = model(DRAWN_FROM)
  padded, lengths, rows = prompts()
  found = draw(ROW_IDS)
  adapter, base = params_lib.partition(params, "lora")
  measure = jax.jit(scoring.make_logprobs(backbone, temperature=TEMPERATURE))
  logprobs, _ = jax.device_get(
    measure(adapter, base, padded, lengths, found.tokens, found.mask)
  )
  for row, prompt in enumerate(rows):
    response = found.tokens[row, found.mask[row]]
    ids = np.concatenate([prompt, response])
    logits = reference.logits(
      backbone.config, params, ids, lora_scale=SPEC.scale
    )
    for t, token in enumerate(response):
      expected = reference.log_softmax(
        logits[len(prompt) + t - 1] / TEMPERATURE
      )[token]
      # Float32 against float64.
      np.testing.assert_allclose(
        logprobs[row, t], expected, rtol=2e-5, atol=3e-5
      )
  assert not np.any(logprobs[~found.mask])


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
