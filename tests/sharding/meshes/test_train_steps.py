"""Five steps of each stage on every mesh: what one device does, no complaints.

Adam divides a gradient by its own size, so that rounding moves a parameter by
as much as 1e-3 of what a step moves it; what is stated is beside the move.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from perl_jax import optim, params, sharding, steps
from perl_jax.tasks.initial import model
from perl_jax.tasks.training.compiled import Compiled
from tests import toys
from tests.sharding.meshes import common
from tests.steps import cases, test_dpo

STEPS = 5
STAGES = ("sft", "pairwise", "pointwise", "rl", "dpo", "full")

# Losses of float32 sums in another order; and of a leaf's move, how much.
LOSS, MOVE = dict(rtol=2e-5, atol=2e-5), 2e-3


@functools.cache
def case(stage):
  if stage == "dpo":
    _, frozen = cases.role(1)
    return cases.Case(
      test_dpo.make_loss(), test_dpo.policy(), frozen, test_dpo.batch()
    )
  if stage == "full":
    trainable, frozen = cases.role(5, head=True, tuning="full")
    assert not jax.tree.leaves(frozen)
    trainable = {"reward": trainable}
    return cases.case("pairwise")._replace(trainable=trainable, frozen=frozen)
  return cases.case(stage)


def adam():
  schedule = optim.make_schedule(
    name="cosine", learning_rate=1e-2, warmup_steps=2, total_steps=STEPS
  )
  return optim.make_optimizer(
    name="adamw",
    schedule=schedule,
    b1=0.9,
    b2=0.99,
    weight_decay=0.01,
    clip_norm=1.0,
  )


def train(stage, mesh):
  """(losses, state, frozen, batch) after five steps."""
  with jax.set_mesh(mesh):
    return _train(stage, mesh)


def _train(stage, mesh):
  loss_fn, trainable, frozen, batch = case(stage)
  state = sharding.place(mesh, steps.init_state(trainable, adam()))
  if isinstance(frozen, steps.Frozen):
    frozen = frozen._replace(base=sharding.place(mesh, frozen.base))
  else:
    frozen = sharding.place(mesh, frozen)
  batch = sharding.place_batch(mesh, jax.tree.map(np.asarray, batch))
  step = Compiled(
    steps.make_train_step(loss_fn, adam()), name=stage, donate=(0,)
  )
  losses = []
  for number in range(STEPS):
    key = jax.random.fold_in(jax.random.key(0), number)
    state, metrics = step(state, frozen, batch, key)
    losses.append(float(metrics["loss"]))
  assert step.traces == 1
  return losses, state, frozen, batch


@functools.cache
def on_one_device(stage):
  losses, state, *_ = train(stage, common.make_mesh("one"))
  return losses, jax.device_get(state)


# Quick ones: each stage once, and each mesh.
QUICK = {
  ("sft", "data"), ("pairwise", "all"), ("rl", "all"), ("dpo", "fsdp"),
  ("full", "fsdp"),
}  # fmt: skip


@pytest.mark.parametrize(
  ("stage", "mesh"),
  [
    pytest.param(
      *pair, marks=[] if pair in QUICK else pytest.mark.slow, id="-".join(pair)
    )
    for pair in itertools.product(STAGES, ("data", "fsdp", "all"))
  ],
)
def test_five_steps(stage, mesh, capfd):
  expected_losses, expected = on_one_device(stage)
  assert expected_losses[-1] != expected_losses[0]
  common.complaints(capfd)
  mesh = common.make_mesh(mesh)
  losses, state, frozen, batch = train(stage, mesh)
  assert common.complaints(capfd) == []

  np.testing.assert_allclose(losses, expected_losses, **LOSS)
  begun = case(stage).trainable
  for path, leaf in params.flatten(state.trainable).items():
    if path == "reward/head/bias" and stage in ("pairwise", "full"):
      continue  # of no consequence for a pair: Adam follows the rounding
    before, after = (
      np.asarray(params.flatten(tree)[path])
      for tree in (begun, expected.trainable)
    )
    move = np.abs(after - before).max()
    assert move > 0, path
    assert np.abs(np.asarray(leaf) - after).max() <= MOVE * move, path

  common.require_rules(state, mesh)
  common.require_rules(getattr(frozen, "base", frozen), mesh)
  rows = mesh.shape["data"] * mesh.shape["fsdp"]
  for leaf in jax.tree.leaves(batch):
    assert leaf.sharding.spec == P(("data", "fsdp"))
    parts = {shard.data.shape[0] for shard in leaf.addressable_shards}
    assert parts == {len(leaf) // rows}


def test_parts_of_the_base_and_of_a_full_optimizer():
  """What the rules say, in numbers: an eighth, or one of 2 x 2."""
  parts = {}
  for name in ("fsdp", "all"):
    mesh = common.make_mesh(name)
    base = sharding.place(mesh, cases.role(1)[1])
    full = case("full").trainable
    state = sharding.place(mesh, steps.init_state(full, adam()))
    moments = params.flatten(state.opt_state[1][0].mu["reward"])
    for path in ("embedding", "layers/mlp/gate/kernel", "layers/mlp/up/kernel",
                 "layers/mlp/down/kernel"):  # fmt: skip
      shapes = {
        shard.data.shape
        for tree in (params.flatten(base), moments)
        for shard in tree[path].addressable_shards
      }
      assert len(shapes) == 1
      parts[name, path] = shapes.pop()
  assert parts == {
    ("fsdp", "embedding"): (32, 4),
    ("fsdp", "layers/mlp/gate/kernel"): (2, 4, 64),
    ("fsdp", "layers/mlp/up/kernel"): (2, 4, 64),
    ("fsdp", "layers/mlp/down/kernel"): (2, 64, 4),
    ("all", "embedding"): (16, 16),
    ("all", "layers/mlp/gate/kernel"): (2, 16, 32),
    ("all", "layers/mlp/up/kernel"): (2, 16, 32),
    ("all", "layers/mlp/down/kernel"): (2, 32, 16),
  }


@pytest.mark.parametrize("dtype", ["float32", "nf4"])
def test_a_random_base_is_drawn_where_it_goes(dtype):
  """The same bits on every mesh, and no leaf in one piece."""
  config = toys.config("gemma3_tiny", vocab_size=64)
  whole = params.fingerprint(model.random_base(config, 3, dtype))
  for name in common.MESHES:
    mesh = common.make_mesh(name)
    base = model.random_base(config, 3, dtype, mesh)
    assert params.fingerprint(base) == whole
    if dtype == "float32":
      common.require_rules(base, mesh)


def test_a_complaint_of_the_compiler_is_seen(capfd):
  """A reshape whose result is cut along axes that the rows took."""
  mesh = common.make_mesh("all")

  def awkward(x):
    x = jax.lax.with_sharding_constraint(x, P(("data", "fsdp", "tensor")))
    x = (x + 1.0).reshape(4, 2, 8)
    return jax.lax.with_sharding_constraint(x, P(None, "tensor", "fsdp"))

  common.complaints(capfd)
  with jax.set_mesh(mesh):
    jax.jit(awkward).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
  found = common.complaints(capfd)
  assert any("Involuntary full rematerialization" in line for line in found)
