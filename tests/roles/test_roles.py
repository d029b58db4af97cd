"""Log-probs, values and scores against loops over the NumPy model.

The reference sees each sequence alone and without padding, so that every test
here is also one of alignment and of padding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.models.lora import LoraSpec
from perl_jax.roles import outputs
from tests import toys
from tests.models import reference

# Log-probs down to -15; float32 against float64.
AGAINST_NUMPY = dict(rtol=2e-5, atol=3e-5)
REASSOCIATED = dict(rtol=1e-5, atol=1e-5)
TEMPERATURE = 0.7
CONFIG = toys.config("gemma2_tiny")  # soft-caps, window, everything
SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(CONFIG, SPEC)
PARAMS = toys.random_params(CONFIG, SPEC, head=True)


PROMPT_LENGTHS = np.array([5, 3, 1, 4], np.int32)
RESPONSE_LENGTHS = np.array([6, 2, 4, 1], np.int32)
PROMPT_LEN, RESPONSE_LEN = 5, 6


def pieces():
  for row, lengths in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
    ids = toys.random_tokens(20 + row, sum(lengths))
    yield row, ids[: lengths[0]], ids[lengths[0] :]


def batch(fill=0):
  """(prompts, lengths, responses, mask) with `fill` in all padding."""
  rows = len(PROMPT_LENGTHS)
  prompts = np.full((rows, PROMPT_LEN), fill, np.int32)
  responses = np.full((rows, RESPONSE_LEN), fill, np.int32)
  for row, prompt, response in pieces():
    prompts[row, PROMPT_LEN - len(prompt) :] = prompt
    responses[row, : len(response)] = response
  mask = np.arange(RESPONSE_LEN) < RESPONSE_LENGTHS[:, None]
  return prompts, PROMPT_LENGTHS, responses, mask


def right_padded_batch(fill=0):
  """(tokens, lengths): the same sequences, from column 0 on."""
  lengths = PROMPT_LENGTHS + RESPONSE_LENGTHS
  tokens = np.full((len(lengths), PROMPT_LEN + RESPONSE_LEN), fill, np.int32)
  for row, prompt, response in pieces():
    tokens[row, : lengths[row]] = np.concatenate([prompt, response])
  return tokens, lengths


@functools.cache
def reference_of(row):
  """(tokens, states, logits) of one sequence, from NumPy."""
  _, prompt, response = list(pieces())[row]
  tokens = np.concatenate([prompt, response])
  return (
    tokens,
    reference.hidden_states(CONFIG, PARAMS, tokens, lora_scale=SPEC.scale),
    reference.logits(CONFIG, PARAMS, tokens, lora_scale=SPEC.scale),
  )


def head(state):
  return state @ np.float64(PARAMS["head"]["kernel"]) + PARAMS["head"]["bias"]


@jax.jit
def measure(params, prompts, lengths, responses, mask):
  sequence = roles.with_response(prompts, lengths, responses, mask)
  return roles.response_logprobs(
    BACKBONE,
    params,
    sequence,
    response_len=RESPONSE_LEN,
    temperature=TEMPERATURE,
    entropy=True,
  ), roles.response_values(
    BACKBONE, params, sequence, response_len=RESPONSE_LEN
  )


def target_scores(params, tokens, lengths, target_mask, *, max_targets):
  sequence = roles.right_padded(tokens, lengths)
  return jax.device_get(
    target_logprobs(
      BACKBONE, params, sequence, target_mask, max_targets=max_targets
    )
  )


target_logprobs = jax.jit(
  roles.target_logprobs, static_argnums=0, static_argnames="max_targets"
)


@jax.jit
def score_at(params, sequence, last):
  columns = jnp.arange(sequence.tokens.shape[1])
  mask = columns == last[:, None]
  return roles.response_scores(BACKBONE, params, sequence, mask, max_response=1)


def test_right_padded():
  tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
  found = roles.right_padded(tokens, jnp.array([3, 1]))
  np.testing.assert_array_equal(found.tokens, tokens)
  np.testing.assert_array_equal(found.positions, [[0, 1, 2], [0, 0, 0]])
  np.testing.assert_array_equal(found.segments, [[1, 1, 1], [1, 0, 0]])
  assert found.positions.dtype == found.segments.dtype == jnp.int32


def test_left_padded():
  tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
  found = roles.left_padded(tokens, jnp.array([3, 2]))
  np.testing.assert_array_equal(found.positions, [[0, 1, 2], [0, 0, 1]])
  np.testing.assert_array_equal(found.segments, [[1, 1, 1], [0, 1, 1]])


def test_with_response():
  found = roles.with_response(
    np.array([[0, 7, 8], [4, 5, 6]]),
    jnp.array([2, 3]),
    np.array([[1, 2], [3, 0]]),
    np.array([[True, True], [True, False]]),
  )
  np.testing.assert_array_equal(
    found.tokens, [[0, 7, 8, 1, 2], [4, 5, 6, 3, 0]]
  )
  np.testing.assert_array_equal(
    found.positions, [[0, 0, 1, 2, 3], [0, 1, 2, 3, 0]]
  )
  np.testing.assert_array_equal(
    found.segments, [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
  )


def some_targets(lengths):
  """Two tokens of three, never the first; the longest row has the most."""
  columns = np.arange(PROMPT_LEN + RESPONSE_LEN)
  return (columns % 3 > 0) & (columns < lengths[:, None])


def check_targets(params, found, kept, tokens, target_mask):
  """Compares with the log-probs of the token that follows, by a loop."""
  hits = 0
  for row, targets in enumerate(target_mask):
    ids = tokens[row, : PROMPT_LENGTHS[row] + RESPONSE_LENGTHS[row]]
    logits = reference.logits(CONFIG, params, ids, lora_scale=SPEC.scale)
    columns = np.flatnonzero(targets)
    assert np.flatnonzero(kept[row]).tolist() == list(range(len(columns)))
    for entry, t in enumerate(columns):
      expected = reference.log_softmax(logits[t - 1])[ids[t]]
      np.testing.assert_allclose(
        found.logprobs[row, entry], expected, **AGAINST_NUMPY
      )
      hit = bool(np.argmax(logits[t - 1]) == ids[t])
      assert bool(found.correct[row, entry]) == hit
      hits += hit
  return hits


def test_target_logprobs_are_of_the_token_given_those_before_it():
  tokens, lengths = right_padded_batch(fill=3)
  # Tokens that the model gets right, so that `correct` is seen to be true.
  for row, length in enumerate(lengths):
    _, _, logits = reference_of(row)
    tokens[row, length - 1] = np.argmax(logits[length - 2])
  mask = some_targets(lengths)
  assert mask.sum(axis=1).tolist() == [7, 3, 3, 3]
  found, kept = target_scores(PARAMS, tokens, lengths, mask, max_targets=7)
  assert found.logprobs.shape == found.correct.shape == kept.shape == (4, 7)
  assert check_targets(PARAMS, found, kept, tokens, mask) > 0


def test_room_for_more_targets_changes_nothing():
  tokens, lengths = right_padded_batch()
  mask = some_targets(lengths)
  found, kept = target_scores(PARAMS, tokens, lengths, mask, max_targets=7)
  more, also = target_scores(PARAMS, tokens, lengths, mask, max_targets=99)
  np.testing.assert_array_equal(also[:, :7], kept)
  assert not np.any(also[:, 7:])
  np.testing.assert_allclose(
    more.logprobs[also], found.logprobs[kept], **REASSOCIATED
  )


@functools.cache
def measured(fill):
  return jax.device_get(measure(PARAMS, *batch(fill)))


def test_response_logprobs_at_the_temperature():
  """log softmax(c tanh(h W / c) / temperature): the cap comes first."""
  scores, _ = measured(0)
  for row, prompt, response in pieces():
    _, _, logits = reference_of(row)
    for t, token in enumerate(response):
      logprobs = reference.log_softmax(
        logits[len(prompt) + t - 1] / TEMPERATURE
      )
      np.testing.assert_allclose(
        scores.logprobs[row, t], logprobs[token], **AGAINST_NUMPY
      )
      np.testing.assert_allclose(
        scores.entropy[row, t],
        -np.sum(np.exp(logprobs) * logprobs),
        **AGAINST_NUMPY,
      )


@pytest.mark.parametrize(
  ("tokens", "mesh", "columns"),
  [
    (2048, (1, 1, 1), 8192),
    (64 * 512, (1, 1, 1), 1024),
    (64 * 512, (2, 2, 1), 2048),
    (64 * 512, (1, 4, 2), 2 * 2048),
    (1, (1, 1, 1), 8192),
  ],
)
def test_wide_heads_are_cut_by_what_a_device_holds(tokens, mesh, columns):
  data, fsdp, tensor = mesh
  made = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
  with jax.set_mesh(made):
    assert outputs.head_pieces(CONFIG, tokens) == {}
    wide = toys.config("tiny", vocab_size=256_000)
    assert outputs.head_pieces(wide, tokens) == {
      "vocab_chunk": columns,
      "vocab_shards": tensor,
    }


def test_a_head_in_pieces_says_the_same(monkeypatch):
  expected, _ = measured(0)
  pieces = dict(vocab_chunk=7, vocab_shards=1)
  monkeypatch.setattr(outputs, "head_pieces", lambda config, tokens: pieces)
  # A function of its own: `measure` is traced already. Five pieces of six.
  again = jax.jit(lambda *arguments: measure.__wrapped__(*arguments))
  assert "f32[4,6,6]" in str(jax.make_jaxpr(again)(PARAMS, *batch()))
  found, _ = jax.device_get(again(PARAMS, *batch()))
  for mine, theirs in zip(found[:2], expected[:2]):
    np.testing.assert_allclose(mine, theirs, **REASSOCIATED)


def test_values_are_of_the_state_before_the_action():
  _, values = measured(0)
  assert values.dtype == np.float32
  for row, prompt, response in pieces():
    _, states, _ = reference_of(row)
    for t in range(len(response)):
      # The state that has seen the prompt and the first t response tokens.
      expected = head(states[len(prompt) + t - 1])
      np.testing.assert_allclose(values[row, t], expected, **AGAINST_NUMPY)


def test_a_value_does_not_see_its_action():
  prompts, lengths, responses, mask = batch()
  _, values = measured(0)
  for t in range(RESPONSE_LEN):
    other = responses.copy()
    other[0, t] = (other[0, t] + 1) % toys.VOCAB
    _, changed = jax.device_get(measure(PARAMS, prompts, lengths, other, mask))
    np.testing.assert_array_equal(changed[0, : t + 1], values[0, : t + 1])
    if t + 1 < RESPONSE_LEN:
      assert changed[0, t + 1] != values[0, t + 1]


@pytest.mark.parametrize("fill", [3, int(toys.random_tokens(20, 11)[-1])])
def test_padding_changes_no_bit_of_a_measurement(fill):
  """Also where the pad id is the id that ends the first response."""
  mask = batch()[3]
  scores, values = measured(0)
  again, other_values = measured(fill)
  np.testing.assert_array_equal(again.logprobs[mask], scores.logprobs[mask])
  np.testing.assert_array_equal(again.entropy[mask], scores.entropy[mask])
  np.testing.assert_array_equal(other_values[mask], values[mask])


def scores_of_right_padded(fill=0):
  tokens, lengths = right_padded_batch(fill)
  sequence = roles.right_padded(tokens, lengths)
  return np.asarray(score_at(PARAMS, sequence, lengths - 1))


def test_score_is_at_the_last_real_token():
  found = scores_of_right_padded()
  assert found.dtype == np.float32
  for row in range(len(found)):
    _, states, _ = reference_of(row)
    np.testing.assert_allclose(found[row], head(states[-1]), **AGAINST_NUMPY)


def likely(row):
  """(geometric mean, least) probability of the response's tokens, by a loop."""
  _, prompt, response = list(pieces())[row]
  _, _, logits = reference_of(row)
  chances = []
  for t, token in enumerate(response):
    z = logits[len(prompt) + t - 1]
    chances.append(np.exp(z[token] - z.max()) / np.exp(z - z.max()).sum())
  return np.prod(chances) ** (1 / len(chances)), min(chances)


def test_likelihood_head_adds_how_likely_the_response_is():
  """The same from sequences in column 0 and from prompts padded on the left."""
  weights = jnp.array([0.5, -2.0])
  tree = PARAMS | {"head": PARAMS["head"] | {"likelihood": weights}}
  tokens, lengths = right_padded_batch()
  columns = np.arange(tokens.shape[1])
  first = columns >= PROMPT_LENGTHS[:, None]
  mask = jnp.asarray(first & (columns < lengths[:, None]))
  prompts, prompt_lengths, responses, response_mask = batch()
  score = jax.jit(
    functools.partial(roles.response_scores, BACKBONE, max_response=6)
  )
  found = score(tree, roles.right_padded(tokens, lengths), mask)
  padded_left = score(
    tree,
    roles.with_response(prompts, prompt_lengths, responses, response_mask),
    jnp.pad(response_mask, ((0, 0), (PROMPT_LEN, 0))),
  )
  np.testing.assert_allclose(found, padded_left, **REASSOCIATED)
  for row in range(len(found)):
    _, states, _ = reference_of(row)
    phi = np.array(likely(row))
    expected = head(states[-1]) + np.sqrt(CONFIG.width) * phi @ weights
    np.testing.assert_allclose(found[row], expected, **AGAINST_NUMPY)
    assert abs(expected - head(states[-1])) > 1e-4


def test_score_does_not_depend_on_padding():
  plain = scores_of_right_padded()
  np.testing.assert_array_equal(scores_of_right_padded(fill=5), plain)
  # The layout of training (right-padded) against that of a rollout.
  for fill in (0, 5):
    prompts, lengths, responses, mask = batch(fill)
    sequence = roles.with_response(prompts, lengths, responses, mask)
    last = PROMPT_LEN + RESPONSE_LENGTHS - 1
    found = score_at(PARAMS, sequence, last)
    np.testing.assert_allclose(found, plain, **REASSOCIATED)


def test_with_response_of_a_group():
  """Prompts once, positions that go on from them, a segment a response."""
  args = (
    np.array([[0, 7, 8], [4, 5, 6]]),
    jnp.array([2, 3]),
    np.array([[1, 2], [3, 0], [9, 9], [0, 0]]),
    np.array([[1, 1], [1, 0], [1, 1], [0, 0]], bool),
  )
  found = roles.with_response(*args, group=2)
  np.testing.assert_array_equal(
    found.tokens, [[0, 7, 8, 1, 2, 3, 0], [4, 5, 6, 9, 9, 0, 0]]
  )
  np.testing.assert_array_equal(
    found.positions, [[0, 0, 1, 2, 3, 2, 0], [0, 1, 2, 3, 4, 0, 0]]
  )
  np.testing.assert_array_equal(
    found.segments, [[0, -1, -1, 1, 1, 2, 0], [-1, -1, -1, 1, 1, 0, 0]]
  )
  assert found.positions.dtype == found.segments.dtype == jnp.int32
  with pytest.raises(ValueError, match=r"\(4, 2\) are not group=3 .* give 6"):
    roles.with_response(*args, group=3)


GROUP = 3
GROUP_LENGTHS = np.array([6, 2, 4, 0, 1, 6], np.int32)


def measure_group(backbone, params, prompts, lengths, responses, group):
  """Log-probs, entropies, values and scores of two prompts' responses."""
  mask = jnp.arange(RESPONSE_LEN) < GROUP_LENGTHS[:, None]
  sequence = roles.with_response(prompts, lengths, responses, mask, group=group)
  sizes = dict(response_len=RESPONSE_LEN, group=group)
  tokens = roles.response_logprobs(
    backbone, params, sequence, temperature=0.7, entropy=True, **sizes
  )
  values = roles.response_values(backbone, params, sequence, **sizes)
  prompt = jnp.zeros(prompts.shape, bool)
  scores = roles.response_scores(
    backbone,
    params,
    sequence,
    jnp.concatenate([prompt, mask.reshape(len(prompts), -1)], axis=1),
    max_response=RESPONSE_LEN,
    group=group,
  )
  per_token = (tokens.logprobs, tokens.entropy, values)
  return [*(jnp.where(mask, x, 0.0) for x in per_token), scores]


@functools.partial(jax.jit, static_argnums=(0, 5))
def measure_and_differentiate(backbone, params, *args):
  rng = np.random.default_rng(3)
  rows = len(GROUP_LENGTHS)
  weights = [rng.normal(size=(rows, RESPONSE_LEN)) for _ in range(3)]
  weights.append(rng.normal(size=rows))

  def loss(params):
    found = measure_group(backbone, params, *args)
    # Values are of the states that log-probs are of: no third backward pass.
    found[2] = jax.lax.stop_gradient(found[2])
    return sum(jnp.vdot(w, x) for w, x in zip(weights, found)), found

  (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return found, params_lib.flatten(grads)


@pytest.mark.parametrize(
  "name",
  [
    name
    if name == "gemma3_tiny"
    else pytest.param(name, marks=pytest.mark.slow)
    for name in toys.FAMILIES
  ],
)
def test_a_group_in_one_row_equals_a_row_for_each_response(name):
  """Also past the window, with an empty response, and all gradients."""
  cfg = toys.config(name)
  backbone = roles.Backbone(cfg, SPEC)
  params = toys.random_params(cfg, SPEC, head=True)
  likelihood = {"likelihood": np.array([0.5, -2.0], np.float32)}
  params = params | {"head": params["head"] | likelihood}
  prompts = toys.random_tokens(70, 2, PROMPT_LEN)
  lengths = np.array([5, 3], np.int32)
  responses = toys.random_tokens(71, 6, RESPONSE_LEN)
  found, grads = jax.device_get(
    measure_and_differentiate(
      backbone, params, prompts, lengths, responses, GROUP
    )
  )
  prompts, lengths = (np.repeat(x, GROUP, axis=0) for x in (prompts, lengths))
  expected, alone = jax.device_get(
    measure_and_differentiate(backbone, params, prompts, lengths, responses, 1)
  )
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, **REASSOCIATED)
  for path, grad in alone.items():
    size = np.abs(grad).max()
    assert size > 1e-3, path
    np.testing.assert_allclose(
      grads[path], grad, rtol=3e-5, atol=3e-5 * size, err_msg=path
    )


def test_a_new_head_says_zero():
  params = PARAMS | roles.init_head(CONFIG)
  params_lib.require_same_leaves(PARAMS, params, "params")
  _, values = measure(params, *batch())
  assert not np.any(values)


def test_the_tree_decides_whether_an_adapter_runs():
  """A role without an adapter is the base, on the same backbone."""
  _, base = params_lib.partition(PARAMS, "lora")
  assert BACKBONE.module(base).lora.rank == 0
  assert BACKBONE.module(PARAMS).lora == SPEC
  tokens, lengths = right_padded_batch()
  mask = some_targets(lengths)
  found, kept = target_scores(base, tokens, lengths, mask, max_targets=7)
  check_targets(base, found, kept, tokens, mask)


@pytest.mark.parametrize("name", ["tiny", "llama_tiny"])
def test_head_kernel_is_tied_or_its_own(name):
  cfg = toys.config(name)
  params = toys.random_params(cfg)
  kernel = roles.head_kernel(cfg, params)
  assert kernel.shape == (cfg.width, cfg.vocab_size)
  expected = params["embedding"].T if cfg.tied_head else params["lm_head"]
  np.testing.assert_array_equal(kernel, expected)
