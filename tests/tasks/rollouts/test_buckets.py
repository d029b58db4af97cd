"""Responses are padded to a bucket, not to all the room that they had."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles, sampling, scoring, steps
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.rollouts import build
from perl_jax.tasks.settings import rl as rl_settings
from tests import toys
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


def test_sorted_microbatches_are_given_all_columns_to_cut():
  """Each is cut in the program; see `sharding.Lengths`."""
  programs = programs_of(DR_GRPO)
  settings = dataclasses.replace(
    programs.settings, buckets=(1, 12), by_length=True
  )
  found = dataclasses.replace(programs, settings=settings)
  samples = programs.sample(*[None] * 6)
  for array in found.responses(samples, longest=1):
    assert array.shape == (PROMPTS, 2, LENGTH)
  short, *_ = dataclasses.replace(
    found, settings=dataclasses.replace(settings, by_length=False)
  ).responses(samples, longest=1)
  assert short.shape == (PROMPTS, 2, 1)


@pytest.mark.parametrize("by_length", [False, True])
def test_scores_and_updates_are_told_of_lengths(monkeypatch, by_length):
  given = {}

  def noted(name):
    def make(*_, **options):
      given[name] = options
      return lambda: None

    return make

  monkeypatch.setattr(scoring, "make_scores", noted("score"))
  monkeypatch.setattr(steps, "make_train_step", noted("learn"))
  config = tiny.config(
    "rl", rollouts__by_length=by_length, rollouts__buckets=(4,)
  )
  backbone = roles.Backbone(toys.config("tiny"), LoraSpec(rank=2, alpha=2.0))
  build.build(rl_settings.read(config), roles.Role(backbone, 1, {}), None)
  if not by_length:
    assert given["score"]["buckets"] == () and not given["learn"]["lengths"]
    return
  assert given["score"]["buckets"] == (4, 12)
  lengths = given["learn"]["lengths"]
  assert lengths.buckets == (4, 12)
  experience = steps.Experience(*[None] * 12)._replace(
    prompts=np.zeros((2, 9)),
    response_mask=np.arange(12) < np.array([[[3], [5]], [[2], [0]]]),
    values=np.arange(48).reshape(2, 2, 12),
  )
  np.testing.assert_array_equal(lengths.of(experience), [5, 2])
  cut = lengths.cut(experience, 4)
  assert cut.prompts.shape == (2, 9)
  np.testing.assert_array_equal(cut.values, experience.values[..., :4])


@pytest.mark.slow
def test_a_run_by_length_learns_the_same(tmp_path, sft_run, reward_run):
  fields = {
    "policy__init": str(sft_run), "reward__init": str(reward_run),
    "microbatches": 4, "score_microbatches": 4, "rollouts__buckets": (2, 4, 8),
  }  # fmt: skip
  for name, by_length in (("plain", False), ("sorted", True)):
    tiny.run(tmp_path / name, "rl", rollouts__by_length=by_length, **fields)
  plain, sorted_ = (tiny.lines(tmp_path / n) for n in ("plain", "sorted"))
  for mine, theirs in zip(sorted_, plain, strict=True):
    for key in ("train/loss", "rollout/kl", "validation/reward"):
      if key in theirs:
        assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key


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
