"""Whose time a phase of an iteration is that members make by turns."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from perl_jax import sharding, steps
from perl_jax.tasks.rollouts import iteration, rewards
from perl_jax.tasks.training import together
from tests.tasks.rollouts import test_iteration

PEAK, FLOPS = 1e3, 5e4
# Seconds of what each of two members does by itself, and of a common update.
SAMPLE, SCORE, LEARN = (10.0, 20.0), (3.0, 4.0), 100.0


class Clock:
  """Goes on where something says how long it takes."""

  seconds = 0.0

  def __call__(self):
    return self.seconds

  def slow(self, function, seconds):
    def run(*args):
      self.seconds += seconds
      return function(*args)

    return test_iteration.Recorder(run)


class Learn:
  """The update of all; counts its calls and their FLOPs."""

  compile_seconds = calls = 0

  def __init__(self, clock, compiling):
    self._clock, self._compiling = clock, compiling
    self._one = test_iteration.learn()

  def __call__(self, states, frozen, batches, keys, values):
    self.calls += 1
    self._clock.seconds += LEARN
    if self.calls == 1:
      self._clock.seconds += self._compiling
      self.compile_seconds += self._compiling
    made = [self._one(s, frozen, b, None) for s, b in zip(states, batches)]
    return tuple(zip(*made, strict=True))

  def flops_run(self):
    return FLOPS * self.calls


def iterations(estimator, clock, learn):
  """`requests` of an iteration of each of two members."""
  shared = together.Shared(2, {}, clock=clock)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  programs = test_iteration.programs_of(estimator)
  reward = rewards.Rewarder(programs.reward, None, None, unstopped_penalty=0.0)
  found = []
  for k in range(2):
    own = dataclasses.replace(
      programs,
      sample=clock.slow(programs.sample, SAMPLE[k]),
      score=clock.slow(programs.score, SCORE[k]),
      learn=learn,
    )
    run = iteration.Iteration(
      own, reward, mesh=mesh, rows=(), key=jax.random.key(8), peak_flops=PEAK,
      clock=clock, member=together.Member(k, shared),
    )  # fmt: skip
    state = steps.TrainState(
      test_iteration.trainable_of(estimator), (), jnp.int32(0),
      {"beta": jnp.float32(0.4)},
    )  # fmt: skip
    found.append(run.requests(state, test_iteration.batch(), 1))
  return shared, found


def metrics_of(shared, requests):
  """Answers the requests of all members at once, and returns their metrics."""
  asked, found = {k: next(r) for k, r in enumerate(requests)}, {}
  while asked:
    if isinstance(asked[0], together.Call):
      answers = shared.call(asked)
    else:
      answers = dict.fromkeys(asked, max(r.value for r in asked.values()))
    for k, answer in answers.items():
      try:
        asked[k] = requests[k].send(answer)
      except StopIteration as end:
        found[k] = end.value[1]
        del asked[k]
        # A member goes on until it meets the others: it evaluates, and samples.
        shared.clock.seconds += 1000.0
  return [found[k] for k in range(len(requests))]


@pytest.mark.parametrize("compiling", [0.0, 7.0])
@pytest.mark.parametrize(
  "estimator", [test_iteration.REINFORCE, test_iteration.PPO]
)
def test_a_phase_is_timed_without_what_others_do(estimator, compiling):
  clock = Clock()
  shared, requests = iterations(estimator, clock, Learn(clock, compiling))
  for k, found in enumerate(metrics_of(shared, requests)):
    learn = LEARN * estimator.updates
    assert found["seconds/sample"] == SAMPLE[k]
    assert found["seconds/score"] == SCORE[k]
    assert found["seconds/learn"] == learn
    flops = FLOPS * estimator.updates
    assert found["rate/mfu"] == pytest.approx(flops / learn / PEAK)
