"""Steps are dispatched ahead, by one; progress shows those that are done."""

import jax.numpy as jnp
import pytest

from perl_jax.tasks.training import stepping
from tests.tasks.training import test_loop


class Result:
  """An array that is computed when the test says so."""

  ready = False

  def is_ready(self):
    return self.ready

  def block_until_ready(self):
    self.ready = True
    return self

  def __float__(self):
    return 0.5


def test_a_step_counts_once_its_results_are_there():
  steps, late = stepping.Dispatched(), Result()
  for step in (1, 2):
    steps.count(step, {"loss": jnp.ones(()).block_until_ready()})
  steps.count(3, {"loss": late, "accuracy": 0.5})
  steps.count(4, {"loss": 0.25})
  assert steps.done() == 2
  assert steps.done() is None
  late.ready = True
  assert steps.done() == 4
  assert steps.done() is None


def test_nothing_is_kept_of_steps_with_a_line(tmp_path, monkeypatch):
  """Who writes a line of every step holds no array of the steps before."""
  steps = stepping.Dispatched()
  monkeypatch.setattr(stepping, "Dispatched", lambda: steps)
  test_loop.run(tmp_path, log_every=1)
  assert not steps._steps


def test_one_step_is_under_way_when_the_next_is_dispatched(tmp_path):
  """Or none: a run that is to stop would wait for all until the next line."""
  losses, under_way = [], []

  def update(state, batch, step):
    under_way.append(sum(not loss.ready for loss in losses))
    state, metrics = test_loop.update(state, batch, step)
    losses.append(Result())
    return state, metrics | {"train/loss": losses[-1]}

  test_loop.run(tmp_path, update=update, log_every=100, eval_every=100)
  assert under_way == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("seconds", "under_way"), [(0.9, 1), (1.0, 0)])
def test_long_steps_are_not_dispatched_ahead(seconds, under_way):
  """A run that is told to stop would wait for two of them."""
  now = [0.0]
  steps = stepping.Dispatched(clock=lambda: now[0])
  made = []
  for step in range(1, 5):
    steps.wait()
    made.append(Result())
    steps.count(step, {"loss": made[-1]})
    now[0] += seconds
  steps.wait()
  assert sum(not result.ready for result in made) == under_way
