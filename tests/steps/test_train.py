"""What an update of a step does, and what it does not touch."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, sharding, steps
from tests.steps.cases import (
  CASES,
  DROPOUT,
  FLOAT32,
  adam,
  case,
  close_trees,
  preference_batch,
  ran,
  role,
  sgd,
  target_batch,
)


@pytest.mark.parametrize("name", CASES)
def test_update_is_the_gradient_of_the_mean(name):
  found, gradient, state, metrics = ran(name)
  count = found["loss"][1]
  expected = jax.tree.map(
    lambda x, g: x - g / count, case(name).trainable, gradient
  )
  close_trees(state.trainable, expected, case(name).trainable)
  for key, (total, n) in found.items():
    np.testing.assert_allclose(metrics[key], total / n, rtol=1e-5, atol=1e-5)
  norm = np.sqrt(
    sum(np.sum((g / count) ** 2) for g in jax.tree.leaves(gradient))
  )
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
  np.testing.assert_allclose(metrics["update_norm"], norm, rtol=1e-4)
  assert state.step == 1


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_microbatches_change_nothing(name):
  """Rows count differently in each part (masks), and still: 1e-4 of a move.

  A mean of means would be off by percents.
  """
  *_, whole, metrics = ran(name)
  loss_fn, trainable, frozen, batch = case(name)
  step = steps.make_train_step(loss_fn, sgd(), microbatches=4)
  parts, part_metrics = jax.device_get(
    jax.jit(step)(
      steps.init_state(trainable, sgd()), frozen, batch, jax.random.key(0)
    )
  )
  close_trees(parts.trainable, whole.trainable, case(name).trainable)
  for key, value in metrics.items():
    np.testing.assert_allclose(
      part_metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key
    )


def test_microbatches_by_length_change_nothing_but_the_columns():
  """Which rows are added up together does not matter; what is computed does."""
  *_, whole, metrics = ran("rl")
  loss_fn, trainable, frozen, batch = case("rl")
  buckets = 3, batch.responses.shape[-1]

  def counting(trainable, frozen, part, key):
    columns = jnp.float32(part.responses.shape[-1])
    return loss_fn(trainable, frozen, part, key) | {"columns": (columns, 1.0)}

  step = steps.make_train_step(
    counting, sgd(), microbatches=4, lengths=steps.lengths_of(buckets)
  )
  parts, part_metrics = jax.device_get(
    jax.jit(step)(
      steps.init_state(trainable, sgd()), frozen, batch, jax.random.key(0)
    )
  )
  close_trees(parts.trainable, whole.trainable, trainable)
  for key, value in metrics.items():
    np.testing.assert_allclose(
      part_metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key
    )
  lengths = np.sort(np.asarray(batch.response_mask).sum(-1).max(-1))
  longest = lengths.reshape(4, -1).max(axis=1)
  columns = [next(n for n in buckets if n >= long) for long in longest]
  assert len(set(columns)) > 1
  assert part_metrics["columns"] == np.mean(columns)


@pytest.mark.parametrize(("parts", "columns"), [(1, [5]), (2, [5, 3])])
def test_a_batch_in_one_part_is_cut_as_well(parts, columns):
  """Values of the longest rows are 1, those of the others 2; none is lost."""

  def loss_fn(trainable, frozen, part, key):
    total = jnp.sum(part.values * part.response_mask) * trainable["w"]
    made = jnp.float32(part.values.shape[-1])
    return {"loss": (total, jnp.float32(8)), "columns": (made, 1.0)}

  mask = np.arange(9) < np.array([2, 5, 3, 4])[:, None, None]
  batch = steps.Experience(*[None] * 12)._replace(
    prompts=np.zeros((4, 2)),
    response_mask=mask,
    values=np.broadcast_to(np.float32([2, 1, 2, 1])[:, None, None], mask.shape),
  )
  step = steps.make_train_step(
    loss_fn, sgd(), microbatches=parts, lengths=steps.lengths_of((3, 5, 9))
  )
  state = steps.init_state({"w": jnp.float32(3)}, sgd())
  state, metrics = jax.jit(step)(state, {}, batch, jax.random.key(0))
  # 2 (2 + 3) + 5 + 4, and a count of 8 in each part.
  assert state.trainable["w"] == 3 - 19 / (8 * parts)
  assert metrics["columns"] == np.mean(columns)


def test_microbatches_draw_keys_of_their_own():
  """Equal rows in two parts are dropped out differently."""
  policy, frozen = role(1)
  first = jax.tree.map(lambda x: np.repeat(x[1:2], 2, axis=0), target_batch())
  loss_fn = steps.language_model_loss(DROPOUT, max_targets=6)
  seen = []

  def spy(*args):
    found = loss_fn(*args)
    jax.debug.callback(lambda x: seen.append(float(x)), found["loss"][0])
    return found

  step = steps.make_train_step(spy, sgd(), microbatches=2)
  state = steps.init_state({"policy": policy}, sgd())
  jax.block_until_ready(jax.jit(step)(state, frozen, first, jax.random.key(0)))
  jax.effects_barrier()
  assert len(seen) == 2 and seen[0] != seen[1]


def test_dropout_depends_on_the_key_and_on_nothing_else():
  policy, frozen = role(1)
  trainable = {"policy": policy}
  loss_fn = jax.jit(steps.language_model_loss(DROPOUT, max_targets=6))

  def loss(key):
    return float(loss_fn(trainable, frozen, target_batch(), key)["loss"][0])

  keys = [jax.random.fold_in(jax.random.key(0), step) for step in (1, 2)]
  assert loss(keys[0]) == loss(keys[0])
  assert loss(keys[0]) != loss(keys[1])
  plain = float(ran("sft")[0]["loss"][0])
  off = loss_fn(trainable, frozen, target_batch(), None)["loss"][0]
  np.testing.assert_allclose(off, plain, **FLOAT32)
  assert abs(loss(keys[0]) - plain) > 1e-3


def test_three_steps_are_one_trace_donated_and_leave_the_base_alone():
  """Warnings are errors: a buffer that could not be donated would be one."""
  loss_fn, trainable, frozen, batch = case("pairwise")
  traces = []

  def counted(*args):
    traces.append(1)
    return loss_fn(*args)

  optimizer = adam()
  step = jax.jit(steps.make_train_step(counted, optimizer), donate_argnums=0)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  placed = sharding.place(mesh, frozen)
  state = sharding.place(mesh, steps.init_state(trainable, optimizer))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for number in range(3):
      before = state
      key = jax.random.fold_in(jax.random.key(0), number)
      state, _ = step(before, placed, batch, key)
      assert all(x.is_deleted() for x in jax.tree.leaves(before))
  assert len(traces) == 1
  assert int(state.step) == 3
  for path, leaf in params.flatten(placed).items():
    np.testing.assert_array_equal(leaf, params.flatten(frozen)[path])
  for path, leaf in params.flatten(state.trainable).items():
    moved = np.any(leaf != params.flatten(trainable)[path])
    # A bias of the head cancels in a difference of scores.
    assert moved or path == "reward/head/bias", path


def opt_leaves(opt_state):
  """{path: leaf} of everything that an optimiser holds but its counters."""
  return {
    sharding.path_string(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
    if leaf.ndim or "head/bias" in sharding.path_string(path)
  }


@pytest.mark.parametrize("name", CASES)
def test_optimizer_holds_adapters_and_heads_only(name):
  """Walks the state: two moments for each trained leaf, none for the base."""
  _, trainable, frozen, _ = case(name)
  opt_state = adam().init(trainable)
  leaves = opt_leaves(opt_state)
  mine = params.flatten(trainable)
  assert all(
    params.is_adapter(path) or "head/" in path for path in [*leaves, *mine]
  )
  assert len(leaves) == 2 * len(mine)
  for path, leaf in leaves.items():
    (owner,) = [p for p in mine if path.endswith(f"/{p}")]
    assert leaf.shape == mine[owner].shape
  others = [x for x in jax.tree.leaves(opt_state) if not x.ndim]
  heads = sum(path.endswith("head/bias") for path in leaves)
  assert all(x.dtype == jnp.int32 for x in others[: len(others) - heads] if
             jnp.issubdtype(x.dtype, jnp.integer))  # fmt: skip
  assert params.nbytes(opt_state) < params.nbytes(frozen)


def test_nothing_of_the_size_of_the_base_is_differentiated():
  """No array in the compiled step's outputs is larger than an adapter leaf."""
  loss_fn, trainable, frozen, batch = case("pairwise")
  optimizer = adam()
  state = steps.init_state(trainable, optimizer)
  step = steps.make_train_step(loss_fn, optimizer)
  out, _ = jax.eval_shape(step, state, frozen, batch, jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(out, state)
  gradients = jax.eval_shape(
    jax.grad(lambda t: loss_fn(t, frozen, batch, None)["loss"][0]), trainable
  )
  assert params.count(gradients) == params.count(trainable)


# Meshes and full tuning.


@pytest.mark.parametrize("name, shape", [("sft", (2, 2, 2)), ("rl", (8, 1, 1))])
def test_sharded_step_is_the_unsharded_one(name, shape):
  """Eight devices, float reassociation apart: 1e-4 of a leaf's move."""
  loss_fn, trainable, frozen, batch = case(name)
  mesh = sharding.make_mesh(
    **dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
  )
  with jax.set_mesh(mesh):
    state = sharding.place(mesh, steps.init_state(trainable, sgd()))
    placed = sharding.place_batch(mesh, jax.tree.map(np.asarray, batch))
    if shape == (8, 1, 1):
      assert len(jax.tree.leaves(placed)[0].sharding.device_set) == 8
    if name == "rl":
      frozen = frozen._replace(base=sharding.place(mesh, frozen.base))
    else:
      frozen = sharding.place(mesh, frozen)
    step = jax.jit(steps.make_train_step(loss_fn, sgd()), donate_argnums=0)
    state, metrics = step(state, frozen, placed, jax.random.key(0))
  *_, whole, expected = ran(name)
  close_trees(jax.device_get(state.trainable), whole.trainable, trainable)
  for key, value in expected.items():
    np.testing.assert_allclose(
      metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key
    )


def test_full_tuning_runs_the_same_step():
  """Everything is trained, nothing is frozen, and the loss falls."""
  reward, frozen = role(3, head=True, tuning="full")
  assert not frozen
  trainable = {"reward": reward}
  optimizer = adam(1e-3)
  step = jax.jit(steps.make_train_step(case("pairwise").loss_fn, optimizer))
  state = steps.init_state(trainable, optimizer)
  key = jax.random.key(0)
  state, first = step(state, {}, preference_batch(), key)
  state, second = step(state, {}, preference_batch(), key)
  assert second["loss"] < first["loss"]
  for path, leaf in params.flatten(state.trainable).items():
    moved = np.any(leaf != params.flatten(trainable)[path])
    # A bias of the head cancels in a difference of scores.
    assert moved or path == "reward/head/bias", path
