"""What the sampler draws, against loops of full passes of the NumPy model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

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
