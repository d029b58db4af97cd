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
from perl_jax.sampling import SamplingSpec
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings import rl as rl_settings
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


def train(name, mesh):
  """(tokens of each iteration, metrics, adapters, state) on a mesh."""
  config = tiny.config("rl", **ESTIMATORS[name])
  estimator = rl_settings.estimator_of(config)
  optimizer = rl_settings.make_optimizer(config)
  spec = SamplingSpec(
    RESPONSE, stop_ids=(3, 4, 11, 17, 22, 40), pad_id=63, temperature=0.7
  )
  base = sharding.place(mesh, toys.random_params(CONFIG))
  anchor = sharding.place(mesh, role(1))
  model = rewards.Model(
    BACKBONE,
    sharding.place(mesh, role(3, head=True)),
    base,
    members=1,
    shares_base=True,
  )
  engine = engine_lib.Engine(BACKBONE, spec, BACKBONE)
  functions = build.make_functions(
    config, estimator, optimizer, engine, model, on_base=True
  )
  tokens = []

  def sample(*args):
    samples = functions.sample(*args)
    tokens.append(np.where(samples.mask, samples.tokens, -1))
    return samples

  trainable = role(1)
  if estimator.uses_value:
    trainable = {"policy": trainable, "value": role(4, head=True)}
  state = steps.init_state(
    sharding.place(mesh, trainable), optimizer, beta=config.beta
  )
  state = sharding.place(mesh, state)
  iterate = iteration.Iteration(
    estimator,
    dataclasses.replace(functions, sample=sample),
    mesh=mesh,
    base=base,
    anchor=anchor,
    reward=rewards.Rewarder(
      model, engine.rewards, None, unstopped_penalty=1.0, mesh=mesh
    ),
    rows=(),
    key=jax.random.key(11),
    control=iteration.Control(),
  )
  metrics = []
  for step in range(1, STEPS + 1):
    state, found = iterate(state, batch(step), step)
    metrics.append({k: float(v) for k, v in tiny.untimed(found).items()})
  return tokens, metrics, params_lib.flatten(trainable), state


@functools.cache
def on_one_device(name):
  mesh = common.make_mesh("one")
  with jax.set_mesh(mesh):
    tokens, metrics, start, state = train(name, mesh)
  return tokens, metrics, start, jax.device_get(state)


QUICK = {("reinforce", "all")}


@pytest.mark.parametrize(
  ("name", "mesh"),
  [
    pytest.param(
      name,
      mesh,
      marks=[] if (name, mesh) in QUICK else pytest.mark.slow,
      id=f"{name}-{mesh}",
    )
    for name in ESTIMATORS
    for mesh in ("data", "fsdp", "all")
  ],
)
def test_five_iterations(name, mesh, capfd):
  """Of a leaf's move, 2e-3: Adam divides a gradient by its own size."""
  expected_tokens, expected, start, last = on_one_device(name)
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
