"""Settings of the RL stage: the optimiser, one chain for each role."""

import jax.numpy as jnp
import pytest

from perl_jax.tasks.settings import rl as rl_settings
from tests.tasks import tiny


def test_the_policy_waits_for_the_value_model():
  """SGD, gradients of ones: the rates of both roles, step by step."""
  config = tiny.config(
    "rl", optimizer__name="sgd", optimizer__b1=0.0, optimizer__clip_norm=0.0,
    optimizer__learning_rate=0.5, optimizer__schedule="constant",
    optimizer__warmup_steps=0, value__learning_rate=0.25,
    value__warmup_steps=2,
  )  # fmt: skip
  trees = {name: {"w": jnp.ones(3)} for name in ("policy", "value")}
  optimizer = rl_settings.read(config).optimizer.transformation
  state, moved = optimizer.init(trees), []
  for _ in range(4):
    updates, state = optimizer.update(trees, state, trees)
    moved.append([-float(updates[n]["w"][0]) for n in ("policy", "value")])
  assert moved == [[0.0, 0.25], [0.0, 0.25], [0.5, 0.25], [0.5, 0.25]]


def test_a_large_gradient_of_the_value_does_not_clip_the_policy():
  config = tiny.config(
    "rl", optimizer__name="sgd", optimizer__b1=0.0, optimizer__clip_norm=2.0,
    optimizer__learning_rate=1.0, optimizer__warmup_steps=0,
    value__learning_rate=1.0,
  )  # fmt: skip
  trees = {"policy": jnp.float32(1.0), "value": jnp.float32(100.0)}
  optimizer = rl_settings.read(config).optimizer.transformation
  updates, _ = optimizer.update(trees, optimizer.init(trees), trees)
  assert float(updates["policy"]) == -1.0
  assert float(updates["value"]) == pytest.approx(-2.0)


def test_learning_rates_are_those_of_the_updates():
  """What is logged is what the optimiser takes: SGD on gradients of ones."""
  config = tiny.config(
    "rl", optimizer__name="sgd", optimizer__b1=0.0, optimizer__clip_norm=0.0,
    optimizer__learning_rate=0.5, optimizer__schedule="cosine",
    optimizer__warmup_steps=2, value__learning_rate=0.25,
    value__warmup_steps=1, steps=6,
  )  # fmt: skip
  optimizer = rl_settings.read(config).optimizer
  trees = {name: jnp.float32(1.0) for name in ("policy", "value")}
  state = optimizer.transformation.init(trees)
  for count in range(6):
    updates, state = optimizer.transformation.update(trees, state, trees)
    for role, metric in (
      ("policy", "learning_rate"),
      ("value", "value_learning_rate"),
    ):
      rate = float(optimizer.learning_rates[metric](count))
      assert -float(updates[role]) == pytest.approx(rate, rel=1e-6), count
