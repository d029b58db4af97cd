"""A number that is not finite is named, and nothing of it reaches the state.

The losses are closed forms of one line, so that each number is bad where the
test says: a row of infinities, the root of 0, an infinite learning rate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perl_jax import steps
from perl_jax.steps import finite
from perl_jax.steps.train import masked_sums

KEY = jax.random.key(0)


def tree():
  return {
    "policy": {
      "a": jnp.array([-0.0, 1.0, 2.0]),
      "b": {"kernel": jnp.array([[0.5, -0.5, 0.25]])},
    }
  }


def linear(trainable, frozen, batch, key):
  """The mean over rows of (x . a)^2 + sum(b)^2."""
  policy = trainable["policy"]
  loss = (batch @ policy["a"]) ** 2 + jnp.sum(policy["b"]["kernel"]) ** 2
  return {"loss": masked_sums(loss, jnp.ones(len(batch), bool))}


def good_batch():
  return np.arange(12, dtype=np.float32).reshape(4, 3) / 10


def bad_batch():
  batch = good_batch()
  batch[2, 1] = np.inf
  return batch


def optimizer():
  """Every kind of state: moments, their count, that of a schedule, a trace."""
  rate = optax.linear_schedule(1e-2, 0.0, 10)
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, weight_decay=0.1),
    optax.trace(0.9),
  )


def bits(state):
  leaves = jax.device_get((state.trainable, state.opt_state))
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(leaves)]


def run(batches, microbatches=1):
  """(bits after each step, faults, number of traces) from one program."""
  traces = []

  def counted(*args):
    traces.append(1)
    return linear(*args)

  step = jax.jit(
    steps.make_train_step(counted, optimizer(), microbatches=microbatches),
    donate_argnums=0,
  )
  state = jax.tree.map(jnp.copy, steps.init_state(tree(), optimizer()))
  found, faults, compiled = [bits(state)], [], None
  for batch in batches:
    state, metrics = step(state, {}, jnp.asarray(batch), KEY)
    found.append(bits(state))
    faults.append(int(metrics["fault"]))
    compiled = compiled or len(traces)
  assert int(state.step) == len(batches)
  assert len(traces) == compiled
  return found, faults


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_bad_batch_leaves_no_trace(microbatches):
  """Parameters (-0.0 too), moments and counters are those without it."""
  good, bad = good_batch(), bad_batch()
  found, faults = run([good, bad, bad, good], microbatches)
  plain, none = run([good, good], microbatches)
  assert none == [0, 0] and [f > 0 for f in faults] == [0, 1, 1, 0]
  assert found[1] == found[2] == found[3] == plain[1]
  assert found[4] == plain[2] != plain[1]


def described(loss_fn, transformation, batch=None):
  trainable = tree()
  step = jax.jit(steps.make_train_step(loss_fn, transformation))
  state = steps.init_state(trainable, transformation)
  batch = jnp.asarray(good_batch() if batch is None else batch)
  after, metrics = step(state, {}, batch, KEY)
  assert bits(after) == bits(state)
  return steps.describe_fault(int(metrics["fault"]), trainable)


def test_the_first_bad_array_is_named():
  found = described(linear, optax.sgd(0.1), bad_batch())
  assert found == steps.Fault("loss", "", None)

  def root(trainable, frozen, batch, key):
    """sqrt(x) at 0: the loss is 0, and its derivative is not finite."""
    kernel = trainable["policy"]["b"]["kernel"]
    loss = jnp.sqrt(kernel - jax.lax.stop_gradient(kernel)).sum()
    return {"loss": (loss, jnp.float32(1))}

  found = described(root, optax.sgd(0.1))
  assert found == steps.Fault("gradient", "policy/b/kernel", None)
  found = described(linear, optax.sgd(float("inf")))
  assert found.phase == "update" and found.path == "policy/a"


def test_squares_that_overflow_are_a_fault():
  """Leaf by leaf, and where only the sum over all leaves does."""
  large = {"policy": {"a": jnp.full(1, 1e30), "b": jnp.ones(1)}}
  fine = jax.tree.map(jnp.ones_like, large)
  code = finite.first_fault(jnp.float32(1), large, fine)
  found = finite.describe_fault(int(code), large)
  assert found == steps.Fault("gradient", "policy/a", None)
  half = {"policy": {"a": jnp.full(1, 1.5e19), "b": jnp.full(1, 1.5e19)}}
  code = finite.first_fault(jnp.float32(1), half, fine)
  assert finite.describe_fault(int(code), half).path == ""
  assert int(finite.first_fault(jnp.float32(1), fine, fine)) == 0


def test_every_fault_has_a_name_of_its_own():
  trainable = tree()
  leaves = len(jax.tree.leaves(trainable))
  names = [
    steps.describe_fault(code, trainable)
    for code in range(1, 3 * (1 + 2 * (leaves + 1)) + 1)
  ]
  assert len(set(names)) == len(names)
  assert {name.member for name in names} == {None, 0, 1}


def test_a_bad_member_of_an_ensemble_is_alone_in_being_left_out():
  trees = jax.tree.map(lambda x: jnp.stack([x, x, x]), tree())
  step = jax.jit(
    steps.make_ensemble_step(linear, optimizer(), members=3, own_rows=True)
  )
  state = steps.init_ensemble(trees, optimizer())
  batch = np.stack([good_batch(), bad_batch(), good_batch()], axis=1)
  after, metrics = step(state, {}, jnp.asarray(batch), KEY)
  found = steps.describe_fault(int(metrics["fault"]), trees)
  assert found == steps.Fault("loss", "", 1)
  moved = [
    [bool(np.any(a[k] != b[k])) for k in range(3)]
    for a, b in zip(
      jax.tree.leaves(after.opt_state),
      jax.tree.leaves(state.opt_state),
      strict=True,
    )
  ]
  assert moved and all(row == [True, False, True] for row in moved)
