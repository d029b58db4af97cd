"""Groups and slots draw what a sample draws that is alone, in fewer steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import sampling
from perl_jax.sampling import SamplingSpec
from tests import toys
from tests.models import reference
from tests.sampling.test_draw import filter_slowly
from tests.sampling.test_sampling import (
  LENGTHS,
  PROMPT_LEN,
  RESPONSE_LEN,
  SPEC,
  continue_slowly,
  model,
  prompts,
)

# Float32 against float64.
AGAINST_NUMPY = dict(rtol=2e-5, atol=3e-5)

# The same numbers in two compiled programs.
REASSOCIATED = dict(rtol=1e-5, atol=1e-5)
TEMPERATURE = 1.3

# Of 29 tokens: responses of every length up to the last.
STOP_IDS = (3, 4, 11, 17, 22)


def spec_of(**fields):
  fields = dict(stop_ids=STOP_IDS, temperature=TEMPERATURE, pad_id=28) | fields
  return SamplingSpec(response_len=RESPONSE_LEN, **fields)


def test_members_of_a_group_draw_with_keys_of_their_own():
  """Tokens and log-probs against full passes of NumPy, of each alone."""
  name, group = "gemma2_tiny", 3
  backbone, params = model(name)
  padded, lengths, rows = prompts()
  row_ids, key = np.array([5, 0, 9, 7], np.int32), jax.random.key(2)
  sample = jax.jit(sampling.make_sampler(backbone, spec_of(group=group)))
  found = jax.device_get(sample(params, padded, lengths, row_ids, key))
  assert found.tokens.shape == found.logprobs.shape == (12, RESPONSE_LEN)
  sizes = set()
  for row in range(12):
    prompt, g = rows[row // group], row % group
    own = jax.random.fold_in(jax.random.fold_in(key, row_ids[row // group]), g)
    said = []

    def pick(step, logits, own=own, said=said):
      scaled = logits / TEMPERATURE
      noise = jax.random.gumbel(
        jax.random.fold_in(own, step), scaled.shape, jnp.float32
      )
      token = int(np.argmax(scaled + noise))
      said.append(reference.log_softmax(scaled)[token])
      return token

    expected = continue_slowly(name, params, prompt, pick, STOP_IDS)
    count = len(expected)
    sizes.add(count)
    assert found.tokens[row, :count].tolist() == expected
    assert found.mask[row].tolist() == [t < count for t in range(RESPONSE_LEN)]
    assert bool(found.stopped[row]) == (expected[-1] in STOP_IDS)
    np.testing.assert_allclose(
      found.logprobs[row, :count], said, **AGAINST_NUMPY
    )
    assert not np.any(found.logprobs[row, count:])
  assert len(sizes) > 2
  assert found.logprobs.dtype == np.float32 and found.steps == max(sizes)


@pytest.mark.parametrize(
  ("fields", "temperature", "top_k", "top_p"),
  [
    (dict(temperature=0.8, top_k=9, top_p=0.8), 0.8, 9, 0.8),
    (dict(temperature=0.0, greedy=True), 1.0, 0, 1.0),
    (dict(temperature=0.6, greedy=True, top_k=2), 0.6, 0, 1.0),
  ],
)
def test_logprobs_are_of_the_distribution(fields, temperature, top_k, top_p):
  """Of that which was drawn from; of greedy tokens without cuts."""
  backbone, params = model("tiny")
  padded, lengths, rows = prompts()
  sample = jax.jit(sampling.make_sampler(backbone, spec_of(**fields)))
  found = sample(params, padded, lengths, np.arange(4), jax.random.key(0))
  for row, prompt in enumerate(rows):
    response = found.tokens[row][found.mask[row]]
    logits = reference.logits(
      backbone.config, params, [*prompt, *response], lora_scale=SPEC.scale
    )
    for t, token in enumerate(response):
      scaled = logits[len(prompt) + t - 1] / temperature
      expected = reference.log_softmax(filter_slowly(scaled, top_k, top_p))
      np.testing.assert_allclose(
        found.logprobs[row, t], expected[token], **AGAINST_NUMPY
      )
  assert not np.any(np.asarray(found.logprobs)[~found.mask])


MANY = 11


@functools.cache
def many_prompts():
  """(left-padded prompts, lengths, row ids) of more rows than slots."""
  lengths = np.resize(LENGTHS, MANY)
  columns = np.arange(PROMPT_LEN) >= PROMPT_LEN - lengths[:, None]
  padded = np.where(columns, toys.random_tokens(44, MANY, PROMPT_LEN), 0)
  return padded, lengths, np.arange(100, 100 + MANY, dtype=np.int32)


@functools.cache
def sampler(name, **fields):
  """A compiled sampler and the list of its traces."""
  sample, traces = sampling.make_sampler(model(name)[0], spec_of(**fields)), []

  def traced(*args):
    traces.append(args[1].shape)
    return sample(*args)

  return jax.jit(traced), traces


def draw(name, rows=slice(None), params=None, key=0, **fields):
  params = model(name)[1] if params is None else params
  args = [x[rows] for x in many_prompts()]
  sample, _ = sampler(name, **fields)
  return jax.device_get(sample(params, *args, jax.random.key(key)))


def check_equal(found, expected):
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.mask, expected.mask)
  np.testing.assert_array_equal(found.stopped, expected.stopped)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, **REASSOCIATED)


@pytest.mark.parametrize(
  ("name", "slots", "refill"),
  [
    ("gemma3_tiny", 3, 1),
    ("mistral_tiny", 4, 2),  # the last refill has a stand-in
    *(
      pytest.param(name, 3, 3, marks=pytest.mark.slow) for name in toys.FAMILIES
    ),
  ],
)
def test_slots_change_no_sample(name, slots, refill):
  """Nor does the ring: steps go round it more than once."""
  plain = draw(name)
  found = draw(name, slots=slots, refill=refill)
  check_equal(found, plain)
  drawn = plain.mask.sum(axis=1)
  assert len(set(drawn)) > 3 and drawn.max() == RESPONSE_LEN
  assert found.steps > RESPONSE_LEN


def test_slots_take_fewer_steps_than_batches():
  """As many as a list of waiting samples does that is played by hand."""
  name, slots = "gemma3_tiny", 3
  drawn = draw(name).mask.sum(axis=1).tolist()
  found = draw(name, slots=slots, refill=1)
  batches = [drawn[i : i + slots] for i in range(0, MANY, slots)]
  in_batches = sum(max(batch) for batch in batches)
  part = draw(name, rows=slice(0, slots))
  assert part.steps == max(batches[0])
  ends = [0] * slots
  for count in drawn:
    first = ends.index(min(ends))
    ends[first] += count
  assert found.steps == max(ends) < in_batches


@pytest.mark.parametrize(("slots", "refill"), [(4, 2), (8, 4)])
def test_groups_in_slots_change_no_sample(slots, refill):
  name = "gemma2_tiny"
  plain = draw(name, group=2)
  found = draw(name, group=2, slots=slots, refill=refill)
  check_equal(found, plain)
  assert found.steps > RESPONSE_LEN
  assert found.tokens.shape == (2 * MANY, RESPONSE_LEN)


def test_a_sample_depends_on_its_key_alone_whichever_slot_it_ran_in():
  order = np.random.default_rng(0).permutation(MANY)
  plain = draw("gemma3_tiny", slots=3, refill=1)
  shuffled = draw("gemma3_tiny", rows=order, slots=3, refill=1)
  np.testing.assert_array_equal(shuffled.tokens, plain.tokens[order])
  other = draw("gemma3_tiny", slots=3, refill=1, key=1)
  assert not np.array_equal(other.tokens, plain.tokens)


def test_as_many_slots_as_samples_are_one_batch():
  found = draw("gemma3_tiny", slots=MANY)
  check_equal(found, draw("gemma3_tiny"))
  assert found.steps == found.mask.sum(axis=1).max()


def test_merged_adapters_change_no_sample_and_no_trace():
  """Here, where a rounding of the kernel moves no draw."""
  name, fields = "gemma3_tiny", dict(slots=3, refill=1, merge=True)
  check_equal(draw(name, **fields), draw(name))
  adapter, base = params_lib.partition(model(name)[1], "lora")
  moved = params_lib.combine(toys.perturbed(adapter), base)
  found = draw(name, params=moved, **fields)
  check_equal(found, draw(name, params=moved))
  assert not np.array_equal(found.tokens, draw(name).tokens)
  assert len(sampler(name, **fields)[1]) == 1
  # A tree without adapters has nothing to merge.
  check_equal(draw(name, params=base, **fields), draw(name, params=base))


def test_merged_decoding_multiplies_by_no_adapter():
  backbone, params = model("tiny")
  _, base = params_lib.partition(params, "lora")

  def products(params, **fields):
    sample = sampling.make_sampler(backbone, spec_of(**fields))
    args = (params, *prompts()[:2], np.arange(4), jax.random.key(0))
    return str(jax.make_jaxpr(sample)(*args)).count("dot_general")

  adapted = len([p for p in params_lib.flatten(params) if "lora_a" in p])
  assert products(params, merge=True) == products(base) + adapted
  # In the prefill and in a step.
  stacked = products(params, split=False)
  assert stacked == products(base, split=False) + 4 * adapted
  # Layers that are split are written out in a step.
  layers = backbone.config.num_layers
  assert products(params) == products(base) + 2 * (1 + layers) * adapted


@pytest.mark.parametrize(
  ("fields", "size"),
  [
    (dict(slots=32), 8),
    (dict(slots=3), 1),
    (dict(slots=24, group=4), 4),
    (dict(slots=32, group=4), 8),
    (dict(slots=32, refill=32), 32),
  ],
)
def test_refill_size(fields, size):
  assert spec_of(**fields).refill_size == size


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(group=0), r"group=0 must be at least 1"),
    (dict(slots=-2), r"slots=-2 must be a multiple of group=1"),
    (dict(slots=6, group=4), r"slots=6 must be a multiple of group=4, or 0"),
    (dict(slots=8, group=4, refill=2), r"refill=2 must be a multiple of group"),
    (dict(slots=4, refill=5), r"refill=5 .* at most slots=4, or 0"),
    (dict(refill=2), r"refill=2 .* at most slots=0"),
  ],
)
def test_slots_that_cannot_be_filled_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    spec_of(**fields)
