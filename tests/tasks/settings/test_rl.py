"""Settings of the RL stage: the optimiser, one chain for each role."""

import jax
import jax.numpy as jnp
import pytest

from perl_jax import sharding
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


@pytest.mark.parametrize("estimator", ["reinforce", "ppo", "rloo", "grpo"])
def test_a_warm_up_of_the_value_model_ends_before_the_run(estimator):
  """Where there is one; the preset's 8 iterations are no fault elsewhere."""
  config = tiny.config(
    "rl", estimator=estimator, samples_per_prompt=2, value__warmup_steps=8,
    reward__fn="module:function", steps=4,
  )  # fmt: skip
  settings = rl_settings.read(config)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  if estimator in ("reinforce", "ppo"):
    with pytest.raises(
      ValueError, match=r"value\.warmup_steps=8 must be below"
    ):
      rl_settings.check(config, settings, mesh)
    return
  rl_settings.check(config, settings, mesh)
  tree = {"policy": jnp.float32(1.0)}
  optimizer = settings.optimizer.transformation
  updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
  assert float(updates["policy"]) < 0.0


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
