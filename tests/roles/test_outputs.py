"""Log-probs, values and scores against loops over the NumPy model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles, sharding
from perl_jax.roles import outputs
from tests import toys
from tests.models import reference
from tests.roles import cases


def head(state):
  return (
    state @ np.float64(cases.PARAMS["head"]["kernel"])
    + cases.PARAMS["head"]["bias"]
  )


@jax.jit
def score_at(params, sequence, last):
  columns = jnp.arange(sequence.tokens.shape[1])
  mask = columns == last[:, None]
  return roles.response_scores(
    cases.BACKBONE, params, sequence, mask, max_response=1
  )


def test_target_logprobs_are_of_the_token_given_those_before_it():
  tokens, lengths = cases.right_padded_batch(fill=3)
  # Tokens that the model gets right, so that `correct` is seen to be true.
  for row, length in enumerate(lengths):
    _, _, logits = cases.reference_of(row)
    tokens[row, length - 1] = np.argmax(logits[length - 2])
  mask = cases.some_targets(lengths)
  assert mask.sum(axis=1).tolist() == [7, 3, 3, 3]
  found, kept = cases.target_scores(
    cases.PARAMS, tokens, lengths, mask, max_targets=7
  )
  assert found.logprobs.shape == found.correct.shape == kept.shape == (4, 7)
  assert cases.check_targets(cases.PARAMS, found, kept, tokens, mask) > 0


def test_room_for_more_targets_changes_nothing():
  tokens, lengths = cases.right_padded_batch()
  mask = cases.some_targets(lengths)
  found, kept = cases.target_scores(
    cases.PARAMS, tokens, lengths, mask, max_targets=7
  )
  more, also = cases.target_scores(
    cases.PARAMS, tokens, lengths, mask, max_targets=99
  )
  np.testing.assert_array_equal(also[:, :7], kept)
  assert not np.any(also[:, 7:])
  np.testing.assert_allclose(
    more.logprobs[also], found.logprobs[kept], **cases.REASSOCIATED
  )


def test_response_logprobs_at_the_temperature():
  """log softmax(c tanh(h W / c) / temperature): the cap comes first."""
  scores, _ = cases.measured(0)
  for row, prompt, response in cases.pieces():
    _, _, logits = cases.reference_of(row)
    for t, token in enumerate(response):
      logprobs = reference.log_softmax(
        logits[len(prompt) + t - 1] / cases.TEMPERATURE
      )
      np.testing.assert_allclose(
        scores.logprobs[row, t], logprobs[token], **cases.AGAINST_NUMPY
      )
      np.testing.assert_allclose(
        scores.entropy[row, t],
        -np.sum(np.exp(logprobs) * logprobs),
        **cases.AGAINST_NUMPY,
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
    assert outputs.head_pieces(cases.CONFIG, tokens) == {}
    wide = toys.config("tiny", vocab_size=256_000)
    assert outputs.head_pieces(wide, tokens) == {
      "vocab_chunk": columns,
      "vocab_shards": tensor,
    }


def test_a_head_in_pieces_says_the_same(monkeypatch):
  expected, _ = cases.measured(0)
  cut = dict(vocab_chunk=7, vocab_shards=1)
  monkeypatch.setattr(outputs, "head_pieces", lambda config, tokens: cut)
  # A function of its own: `measure` is traced already. Five pieces of six.
  again = jax.jit(lambda *arguments: cases.measure.__wrapped__(*arguments))
  assert "f32[4,6,6]" in str(
    jax.make_jaxpr(again)(cases.PARAMS, *cases.batch())
  )
  found, _ = jax.device_get(again(cases.PARAMS, *cases.batch()))
  for mine, theirs in zip(found[:2], expected[:2]):
    np.testing.assert_allclose(mine, theirs, **cases.REASSOCIATED)


def test_values_are_of_the_state_before_the_action():
  _, values = cases.measured(0)
  assert values.dtype == np.float32
  for row, prompt, response in cases.pieces():
    _, states, _ = cases.reference_of(row)
    for t in range(len(response)):
      # The state that has seen the prompt and the first t response tokens.
      expected = head(states[len(prompt) + t - 1])
      np.testing.assert_allclose(
        values[row, t], expected, **cases.AGAINST_NUMPY
      )


def test_a_value_does_not_see_its_action():
  prompts, lengths, responses, mask = cases.batch()
  _, values = cases.measured(0)
  for t in range(cases.RESPONSE_LEN):
    other = responses.copy()
    other[0, t] = (other[0, t] + 1) % toys.VOCAB
    _, changed = jax.device_get(
      cases.measure(cases.PARAMS, prompts, lengths, other, mask)
    )
    np.testing.assert_array_equal(changed[0, : t + 1], values[0, : t + 1])
    if t + 1 < cases.RESPONSE_LEN:
      assert changed[0, t + 1] != values[0, t + 1]


@pytest.mark.parametrize("fill", [3, int(toys.random_tokens(20, 11)[-1])])
def test_padding_changes_no_bit_of_a_measurement(fill):
  """Also where the pad id is the id that ends the first response."""
  mask = cases.batch()[3]
  scores, values = cases.measured(0)
  again, other_values = cases.measured(fill)
  np.testing.assert_array_equal(again.logprobs[mask], scores.logprobs[mask])
  np.testing.assert_array_equal(again.entropy[mask], scores.entropy[mask])
  np.testing.assert_array_equal(other_values[mask], values[mask])


def scores_of_right_padded(fill=0):
  tokens, lengths = cases.right_padded_batch(fill)
  sequence = roles.right_padded(tokens, lengths)
  return np.asarray(score_at(cases.PARAMS, sequence, lengths - 1))


def test_score_is_at_the_last_real_token():
  found = scores_of_right_padded()
  assert found.dtype == np.float32
  for row in range(len(found)):
    _, states, _ = cases.reference_of(row)
    np.testing.assert_allclose(
      found[row], head(states[-1]), **cases.AGAINST_NUMPY
    )


def likely(row):
  """(geometric mean, least) probability of the response's tokens, by a loop."""
  _, prompt, response = list(cases.pieces())[row]
  _, _, logits = cases.reference_of(row)
  chances = []
  for t, token in enumerate(response):
    z = logits[len(prompt) + t - 1]
    chances.append(np.exp(z[token] - z.max()) / np.exp(z - z.max()).sum())
  return np.prod(chances) ** (1 / len(chances)), min(chances)


def test_likelihood_head_adds_how_likely_the_response_is():
  """The same from sequences in column 0 and from prompts padded on the left."""
  weights = jnp.array([0.5, -2.0])
  tree = cases.PARAMS | {"head": cases.PARAMS["head"] | {"likelihood": weights}}
  tokens, lengths = cases.right_padded_batch()
  columns = np.arange(tokens.shape[1])
  first = columns >= cases.PROMPT_LENGTHS[:, None]
  mask = jnp.asarray(first & (columns < lengths[:, None]))
  prompts, prompt_lengths, responses, response_mask = cases.batch()
  score = jax.jit(
    functools.partial(roles.response_scores, cases.BACKBONE, max_response=6)
  )
  found = score(tree, roles.right_padded(tokens, lengths), mask)
  padded_left = score(
    tree,
    roles.with_response(prompts, prompt_lengths, responses, response_mask),
    jnp.pad(response_mask, ((0, 0), (cases.PROMPT_LEN, 0))),
  )
  np.testing.assert_allclose(found, padded_left, **cases.REASSOCIATED)
  for row in range(len(found)):
    _, states, _ = cases.reference_of(row)
    phi = np.array(likely(row))
    expected = head(states[-1]) + np.sqrt(cases.CONFIG.width) * phi @ weights
    np.testing.assert_allclose(found[row], expected, **cases.AGAINST_NUMPY)
    assert abs(expected - head(states[-1])) > 1e-4


def test_score_does_not_depend_on_padding():
  plain = scores_of_right_padded()
  np.testing.assert_array_equal(scores_of_right_padded(fill=5), plain)
  # The layout of training (right-padded) against that of a rollout.
  for fill in (0, 5):
    prompts, lengths, responses, mask = cases.batch(fill)
    sequence = roles.with_response(prompts, lengths, responses, mask)
    last = cases.PROMPT_LEN + cases.RESPONSE_LENGTHS - 1
    found = score_at(cases.PARAMS, sequence, last)
    np.testing.assert_allclose(found, plain, **cases.REASSOCIATED)
