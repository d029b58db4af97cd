"""Steps are dispatched ahead; the progress line shows those that are done."""

import jax.numpy as jnp

from perl_jax.tasks.training import stepping


class Result:
  """An array that is computed when the test says so."""

  ready = False

  def is_ready(self):
    return self.ready


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
