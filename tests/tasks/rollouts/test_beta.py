"""The weight of the KL from one iteration of RL to the next."""

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import kl
from perl_jax.tasks.settings import rl as rl_settings
from tests.tasks import tiny
from tests.tasks.rollouts.test_iteration import (
  BETA,
  DR_GRPO,
  PPO,
  PROMPTS,
  REINFORCE,
  iterate,
)


@pytest.mark.parametrize("estimator", [REINFORCE, PPO, DR_GRPO])
def test_beta_follows_the_kl(estimator):
  """Once an iteration, after its updates; 0 leaves it as it is."""
  metrics, programs, state = iterate(estimator, target=4.0, horizon=40)
  expected = [jnp.float32(BETA)]
  for _ in range(2):
    expected.append(
      kl.adapt_beta(
        expected[-1], 6.0, target=4.0, horizon=40,
        batch_size=PROMPTS * estimator.group,
      )
    )  # fmt: skip
  assert expected[1] > BETA
  assert [m["train/beta"] for m in metrics] == expected[:2]
  assert state.controls["beta"] == expected[2]
  betas = [
    set(np.asarray(args[2].beta).tolist()) for args in programs.learn.calls
  ]
  half = estimator.updates
  assert betas == [{float(expected[0])}] * half + [{float(expected[1])}] * half
  metrics, _, state = iterate(estimator)
  assert state.controls["beta"] == metrics[1]["train/beta"] == np.float32(BETA)


@pytest.mark.parametrize("estimator", [REINFORCE, PPO])
def test_beta_waits_for_the_value_model_as_the_policy_does(estimator):
  """With a KL of 6 above its target: one iteration of the two moves it."""
  waits = {"target": 4.0, "horizon": 40, "waits": 1}
  metrics, _, state = iterate(estimator, **waits)
  assert [m["train/beta"] for m in metrics] == [np.float32(BETA)] * 2
  # By hand: 6 / 4 - 1 is cut at 0.2, and 4 of 40 responses are a tenth.
  assert float(state.controls["beta"]) == pytest.approx(BETA * 1.02)


@pytest.mark.parametrize(
  ("fields", "waits"),
  [
    ({}, 3),
    ({"estimator": "ppo"}, 3),
    ({"estimator": "rloo", "samples_per_prompt": 2}, 0),
  ],
)
def test_only_a_run_with_a_value_model_waits(fields, waits):
  config = tiny.config("rl", value__warmup_steps=3, **fields)
  assert rl_settings.read(config).kl_waits == waits
