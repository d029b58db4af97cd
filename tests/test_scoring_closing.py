"""What a chat template writes after a response, and the scores of all roles."""

import functools

import jax
import numpy as np

from perl_jax import params as params_lib
from perl_jax import roles, scoring
from tests import padded
from tests.models import reference
from tests.scored import (
  ACROSS_PROGRAMS,
  BACKBONE,
  CONFIG,
  GROUP,
  MEMBERS,
  RESPONSE_LEN,
  SPEC,
  TOGETHER,
  grouped,
  make_scores,
  roles_of,
)

# What a chat template writes after a response: token 5 stops one, and 6 and 7
# are read after it; a response that was cut is stopped first.
CLOSING = roles.Closing((6, 7), (5,))
# A template that ends a turn with text alone: the stop token is taken off.
WITHOUT_STOP = roles.Closing((6, 7), (5,), keeps_stop=False)


def stopping():
  """`grouped`, with a stop token at the end of some responses."""
  prompts, lengths, responses, mask = grouped()
  last = mask & ~np.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1)))
  stops = last & (np.arange(GROUP) == 0)[:, None]
  assert stops.any(axis=(1, 2)).any() and (last & ~stops).any()
  responses = np.where(stops, 5, np.where(responses == 5, 4, responses))
  return prompts, lengths, responses, mask


def closed_rows():
  """Responses in rows of their own with the closing written by a loop."""
  prompts, lengths, responses, mask = stopping()
  wide = np.zeros((4 * GROUP, RESPONSE_LEN + 3), np.int32)
  read = np.zeros(wide.shape, bool)
  flat = responses.reshape(-1, RESPONSE_LEN), mask.reshape(-1, RESPONSE_LEN)
  for row, (ids, own) in enumerate(zip(*flat, strict=True)):
    ids = ids[own].tolist()
    if ids:
      ids += [6, 7] if ids[-1] == 5 else [5, 6, 7]
    wide[row, : len(ids)], read[row, : len(ids)] = ids, True
  prompts = np.repeat(prompts, GROUP, axis=0)
  return prompts, np.repeat(lengths, GROUP), wide, read


def without_likelihood():
  """Roles whose rewards are read at one token, so that NumPy can say them."""
  asked, base = roles_of()
  head = {k: v for k, v in asked["reward"]["head"].items() if k != "likelihood"}
  return asked | {"reward": asked["reward"] | {"head": head}}, base


def test_a_closing_is_read_by_the_reward_model_alone():
  """One pass for all roles, groups, members and parts of a batch."""
  asked, base = without_likelihood()
  plain = make_scores(together=TOGETHER, members=MEMBERS)
  expected = jax.device_get(plain(asked, {"": base}, *stopping()))
  rewards = jax.jit(scoring.make_rewards(BACKBONE, members=MEMBERS))
  read_on = rewards(asked["reward"], base, *closed_rows())
  read_on = np.asarray(read_on).reshape(MEMBERS, 4, GROUP)
  moved = np.abs(read_on - expected["reward"])
  sampled = stopping()[3].any(axis=-1)
  assert moved[:, sampled].min() > 1e-3 and moved[:, ~sampled].max() < 1e-5
  expected["reward"] = read_on
  for parts in (1, 4):
    scores = make_scores(
      together=TOGETHER, members=MEMBERS, microbatches=parts, closing=CLOSING
    )
    found = jax.device_get(scores(asked, {"": base}, *stopping()))
    for name, values in expected.items():
      np.testing.assert_allclose(
        found[name], values, err_msg=name, **ACROSS_PROGRAMS
      )


def test_a_template_without_a_stop_token_leaves_its_logprob_as_it_is():
  """The reward model reads other tokens in one pass with the other roles."""
  asked, base = without_likelihood()
  plain = make_scores(together=TOGETHER, members=MEMBERS)
  expected = jax.device_get(plain(asked, {"": base}, *stopping()))
  apart = make_scores(together=(), members=MEMBERS, closing=WITHOUT_STOP)
  rewards = jax.device_get(apart(asked, {"": base}, *stopping()))["reward"]
  sampled = stopping()[3].any(axis=-1)
  assert np.abs(rewards - expected["reward"])[:, sampled].min() > 1e-3
  expected["reward"] = rewards
  scores = make_scores(together=TOGETHER, members=MEMBERS, closing=WITHOUT_STOP)
  found = jax.device_get(scores(asked, {"": base}, *stopping()))
  for name, values in expected.items():
    np.testing.assert_allclose(
      found[name], values, err_msg=name, **ACROSS_PROGRAMS
    )


def test_a_closed_response_is_scored_at_the_last_token_of_the_closing():
  """By NumPy; an evaluation reads as training does."""
  asked, base = without_likelihood()
  tree = params_lib.member(asked["reward"], 0)
  prompts, lengths, responses, mask = stopping()
  flat = (
    np.repeat(prompts, GROUP, axis=0),
    np.repeat(lengths, GROUP),
    responses.reshape(-1, RESPONSE_LEN),
    mask.reshape(-1, RESPONSE_LEN),
  )
  rewards = jax.jit(scoring.make_rewards(BACKBONE, closing=CLOSING))
  found = rewards(tree, base, *flat)
  params = params_lib.combine(tree, base)
  prompts, lengths, wide, read = closed_rows()
  for row in (0, 1, 3, 5):
    ids = [*prompts[row, 4 - lengths[row] :], *wide[row, read[row]]]
    state = reference.hidden_states(CONFIG, params, ids, lora_scale=SPEC.scale)
    np.testing.assert_allclose(
      found[row],
      state[-1] @ tree["head"]["kernel"] + tree["head"]["bias"],
      rtol=2e-5,
      atol=2e-5,
    )


def test_likelihood_is_of_the_response_without_its_closing():
  """As in training, on rows that are padded on the right."""
  asked, base = roles_of()
  tree = params_lib.member(asked["reward"], 0)
  prompts, lengths, wide, read = closed_rows()
  responses, mask = (
    array.reshape(-1, RESPONSE_LEN) for array in stopping()[2:]
  )
  rewards = jax.jit(scoring.make_rewards(BACKBONE, closing=CLOSING))
  found = rewards(tree, base, prompts, lengths, responses, mask)
  tokens = np.zeros((len(wide), 4 + wide.shape[1]), np.int32)
  totals = lengths + read.sum(axis=1)
  for row, total in enumerate(totals):
    prompt = prompts[row, 4 - lengths[row] :]
    tokens[row, :total] = [*prompt, *wide[row, read[row]]]
  score = functools.partial(padded.reward_scores, BACKBONE, max_response=8)
  behind = read.sum(axis=1) - mask.sum(axis=1)
  # The stop token is the response's own, unless it was cut.
  for closing, count in ((2, 3), (3, 2)):
    expected = jax.jit(functools.partial(score, closing=closing))(
      params_lib.combine(tree, base), tokens, totals, lengths
    )
    rows = behind == closing
    assert rows.sum() == count
    np.testing.assert_allclose(found[rows], expected[rows], **ACROSS_PROGRAMS)
