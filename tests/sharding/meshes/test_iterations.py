"""Five iterations of RL on every mesh: the same tokens, losses and adapters."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.training import nonfinite
from tests import toys
from tests.sharding.meshes import common
from tests.tasks import tiny

STEPS, ROWS, PROMPT, RESPONSE = 5, 8, 5, 7
CONFIG = toys.config("tiny", vocab_size=64)
BACKBONE = roles.Backbone(CONFIG, LoraSpec(rank=2, alpha=2.0))
ESTIMATORS = {
  "reinforce": {"value__init": "policy", "steps": STEPS, "microbatches": 1},
  "grpo": {
    "estimator": "grpo", "samples_per_prompt": 2, "kl__estimator": "k3",
    "kl__place": "loss", "steps": STEPS, "ppo__epochs": 2,
    "microbatches": 1,
  },
}  # fmt: skip


def role(seed, head=False):
  tree = toys.random_params(CONFIG, BACKBONE.lora, head=head, seed=seed)
  return params_lib.partition(jax.tree.map(jax.numpy.asarray, tree), "lora")[0]


def batch(step):
  rng = np.random.default_rng([7, step])
  return PromptBatch(
    toys.random_tokens(step, ROWS, PROMPT, vocab=64),
    rng.integers(1, PROMPT + 1, ROWS).astype(np.int32),
    np.ones(ROWS, bool),
    np.arange(ROWS, dtype=np.int32),
  )


class Recorded:
  """A compiled sampler that keeps what it has sampled, -1 where masked."""

  def __init__(self, sample):
    self.tokens, self._sample = [], sample

  @property
  def compile_seconds(self):
    return self._sample.compile_seconds

  def __call__(self, *args):
    samples = self._sample(*args)
    self.tokens.append(np.where(samples.mask, samples.tokens, -1))
    return samples


def train(name, mesh):
  """(tokens of each iteration, metrics, adapters, state) on a mesh."""
  settings = rl_settings.read(
    tiny.config("rl", data__response_len=RESPONSE, **ESTIMATORS[name])
  )
  stops = {"stop_ids": (3, 4, 11, 17, 22, 40), "pad_id": 63, "temperature": 0.7}
  settings = dataclasses.replace(
    settings,
    sampling=dataclasses.replace(settings.sampling, **stops),
    rollout=dataclasses.replace(settings.rollout, **stops),
  )
  base = toys.random_params(CONFIG)
  placed = initial_roles.place(
    mesh,
    {
      "anchor": roles.Role(BACKBONE, role(1), base),
      "reward": roles.Role(BACKBONE, role(3, head=True), base),
    },
  )
  built = build.build(settings, placed["anchor"], placed["reward"])
  sample = Recorded(built.sample)
  trainable = {"policy": role(1)}
  if settings.estimator.uses_value:
    trainable["value"] = role(4, head=True)
  state = steps.init_state(
    sharding.place(mesh, trainable),
    settings.optimizer.transformation,
    beta=settings.beta,
  )
  state = sharding.place(mesh, state)
  iterate = iteration.Iteration(
    dataclasses.replace(built, sample=sample),
    rewards.Rewarder(
      placed["reward"],
      built.engine.rewards,
      None,
      unstopped_penalty=1.0,
      mesh=mesh,
    ),
    mesh=mesh,
    rows=(),
    key=jax.random.key(11),
  )
  metrics = []
  for step in range(1, STEPS + 1):
    state, found = iterate(state, batch(step), step)
    del found[nonfinite.KEY]
    metrics.append({k: float(v) for k, v in tiny.untimed(found).items()})
  return sample.tokens, metrics, params_lib.flatten(trainable), state


@functools.cache
def on_one_device(name):
  mesh = common.make_mesh("one")
  with jax.set_mesh(mesh):
    tokens, metrics, start, state = train(name, mesh)
  return tokens, metrics, start, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "fsdp", "all"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_five_iterations(name, mesh, capfd):
  """Of a leaf's move, 2e-3: Adam divides a gradient by its own size."""
  expected_tokens, expected, start, last = on_one_device(name)
  expected = [dict(row) for row in expected]
  assert expected[0]["rollout/stop_rate"] not in (0.0, 1.0)
  common.complaints(capfd)
  mesh = common.make_mesh(mesh)
  with jax.set_mesh(mesh):
    tokens, metrics, _, state = train(name, mesh)
  assert common.complaints(capfd) == []
  np.testing.assert_array_equal(tokens, expected_tokens)
  for found, wanted in zip(metrics, expected, strict=True):
    assert found == pytest.approx(wanted, rel=1e-4, abs=2e-5)
  found, wanted = (params_lib.flatten(tree.trainable) for tree in (state, last))
  for path, leaf in found.items():
    move = np.abs(wanted[path] - start[path]).max()
    assert move > 0, path
    assert np.abs(leaf - wanted[path]).max() <= 2e-3 * move, path
  common.require_rules(state, mesh)
