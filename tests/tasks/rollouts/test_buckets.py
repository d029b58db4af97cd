"""Responses are padded to a bucket, not to all the room that they had."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import sampling
from perl_jax.tasks.settings import rl as rl_settings
from tests.tasks import tiny
from tests.tasks.rollouts.test_iteration import (
  DR_GRPO,
  LENGTH,
  PROMPTS,
  Recorder,
  iterate,
  programs_of,
  sampled,
)


@pytest.mark.parametrize(
  ("longest", "given", "buckets"),
  [
    (12, (), (12,)),
    (48, (), (24, 48)),
    (64, (), (16, 32, 64)),
    (1024, (), (256, 512, 1024)),
    (48, (40, 8), (8, 40, 48)),
    (48, (48,), (48,)),
  ],
)
def test_the_longest_has_a_bucket(longest, given, buckets):
  config = tiny.config(
    "rl", data__response_len=longest, rollouts__buckets=given
  )
  assert rl_settings.read(config).buckets == buckets


@pytest.mark.parametrize(("longest", "room"), [(1, 1), (2, 3), (3, 3)])
def test_responses_are_scored_and_learned_from_on_their_length(longest, room):
  """Padded to the first bucket with room for the longest; none is cut."""
  programs = programs_of(DR_GRPO)
  settings = dataclasses.replace(programs.settings, buckets=(1, 3, 12))

  def short(*_):
    samples = programs.sample(*_)
    mask = samples.mask & (jnp.arange(LENGTH) < longest)
    wide = [jnp.pad(a, ((0, 0), (0, 9))) for a in (samples.tokens, mask)]
    logprobs = jnp.pad(samples.logprobs, ((0, 0), (0, 9)))
    return sampling.Samples(*wide, samples.stopped, logprobs, jnp.int32(7))

  short = Recorder(short)
  found = dataclasses.replace(programs, settings=settings, sample=short)
  iterate(DR_GRPO, of=found)
  for function, place in ((found.score, -2), (found.score, -1)):
    assert function.calls[0][place].shape == (PROMPTS, 2, room)
  experience = found.learn.calls[0][2]
  assert experience.responses.shape == (PROMPTS, 2, room)
  _, mask, _, _ = sampled(2)
  kept = mask & (np.arange(LENGTH) < longest)
  assert experience.response_mask.sum() == kept.sum()
  np.testing.assert_array_equal(
    experience.response_mask.reshape(-1, room), kept[:, :room]
  )
