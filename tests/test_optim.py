"""Schedules at points computed by hand, and what each optimiser is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perl_jax import optim

HYPER = dict(b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=0.0)


def rates(steps, **fields):
  schedule = optim.make_schedule(**fields)
  return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("constant", [1.0, 1.0, 1.0, 1.0]),
    ("linear", [1.0, 0.75, 0.25, 0.0]),
    (
      "cosine",
      [1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5 - 0.5 * 0.5**0.5, 0.0],
    ),
  ],
)
def test_without_warm_up(name, expected):
  found = rates(
    [0, 2, 6, 8],
    name=name,
    learning_rate=1.0,
    warmup_steps=0,
    total_steps=8,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ("name", "after"),
  [
    ("constant", [0.4, 0.4, 0.4]),
    ("linear", [0.4, 0.2, 0.0]),
    ("cosine", [0.4, 0.2, 0.0]),
  ],
)
def test_warm_up_then_decay(name, after):
  """Three steps of warm-up: 1/4, 2/4, 3/4 of the rate; then 4 of decay."""
  found = rates(
    [0, 1, 2, 3, 5, 7],
    name=name,
    learning_rate=0.4,
    warmup_steps=3,
    total_steps=7,
  )
  np.testing.assert_allclose(
    found, [0.1, 0.2, 0.3, *after], rtol=1e-6, atol=1e-7
  )


def test_a_delay_is_still_and_leaves_the_rest_of_the_steps():
  """3 of 10 steps at 0; then what 7 steps with 2 of warm-up give."""
  found = rates(
    range(10),
    name="linear",
    learning_rate=0.3,
    warmup_steps=2,
    total_steps=10,
    zero_steps=3,
  )
  expected = [0, 0, 0, 0.1, 0.2, 0.3, 0.24, 0.18, 0.12, 0.06]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (1, 5), (5, 5), (9, 5)])
def test_every_step_of_a_run_moves(name, warmup, total):
  """No rate is 0 or above the peak, however long the warm-up is."""
  found = rates(
    range(total),
    name=name,
    learning_rate=0.3,
    warmup_steps=warmup,
    total_steps=total,
  )
  assert all(0 < rate <= 0.3 * (1 + 1e-6) for rate in found)


def test_decays_stay_at_zero_behind_the_end():
  for name in ("linear", "cosine"):
    found = rates(
      [8, 100], name=name, learning_rate=1.0, warmup_steps=2, total_steps=8
    )
    np.testing.assert_allclose(found, 0.0, atol=1e-7)


def first_update(name, *, grad=2.0, param=5.0, schedule=None, **changes):
  optimizer = optim.make_optimizer(
    name=name,
    schedule=schedule or optax.constant_schedule(0.1),
    **HYPER | changes,
  )
  params = {"w": jnp.full((4,), param)}
  grads = {"w": jnp.full((4,), grad)}
  updates, state = optimizer.update(grads, optimizer.init(params), params)
  return np.asarray(updates["w"]), state


def test_sgd_is_the_rate_times_the_gradient():
  found, _ = first_update("sgd", b1=0.0)
  np.testing.assert_allclose(found, -0.2, rtol=1e-6)


def test_first_step_of_adamw():
  """Bias-corrected moments of one gradient: its sign, times the rate."""
  found, _ = first_update("adamw")
  np.testing.assert_allclose(found, -0.1, rtol=1e-5)
  decayed, _ = first_update("adamw", weight_decay=0.3)
  np.testing.assert_allclose(decayed, -0.1 - 0.1 * 0.3 * 5.0, rtol=1e-5)


def test_adamw_takes_both_betas():
  """Two steps, gradients 1 then 3, against the formula."""
  b1, b2, rate = 0.6, 0.8, 0.1
  optimizer = optim.make_optimizer(
    name="adamw",
    schedule=optax.constant_schedule(rate),
    **HYPER | dict(b1=b1, b2=b2),
  )
  params = {"w": jnp.zeros(())}
  state = optimizer.init(params)
  for grad in (1.0, 3.0):
    updates, state = optimizer.update({"w": jnp.float32(grad)}, state, params)
  m = (b1 * (1 - b1) * 1.0 + (1 - b1) * 3.0) / (1 - b1**2)
  v = (b2 * (1 - b2) * 1.0 + (1 - b2) * 9.0) / (1 - b2**2)
  np.testing.assert_allclose(
    float(updates["w"]), -rate * m / (v**0.5 + 1e-8), rtol=1e-5
  )


def test_first_step_of_adafactor_moves_against_the_gradient():
  found, _ = first_update("adafactor")
  assert np.all(found < 0)
  small, _ = first_update("adafactor", param=0.0)
  # Not scaled by the parameter: B of an adapter starts at 0 and must move.
  np.testing.assert_allclose(small, found, rtol=1e-5)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_schedule_drives_every_optimiser(name):
  schedule = optim.make_schedule(
    name="constant", learning_rate=0.1, warmup_steps=1, total_steps=9
  )
  warm, _ = first_update(name, schedule=schedule)
  full, _ = first_update(name)
  np.testing.assert_allclose(warm, full / 2, rtol=1e-5)


def test_clipping_by_the_global_norm():
  """|g| = sqrt(4 * 2^2) = 4, cut to 1: each entry is 0.5."""
  found, _ = first_update("sgd", b1=0.0, clip_norm=1.0)
  np.testing.assert_allclose(found, -0.05, rtol=1e-6)
  loose, _ = first_update("sgd", b1=0.0, clip_norm=4.5)
  np.testing.assert_allclose(loose, -0.2, rtol=1e-6)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_state_is_as_large_as_what_is_trained(name):
  """No leaf of the state is larger than the parameter it belongs to."""
  optimizer = optim.make_optimizer(
    name=name, schedule=optax.constant_schedule(0.1), **HYPER
  )
  params = {"w": jnp.zeros((6, 7))}
  state = jax.eval_shape(optimizer.init, params)
  sizes = [leaf.size for leaf in jax.tree.leaves(state)]
  assert max(sizes) == 42
  assert sum(sizes) <= 2 * 42 + 4


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: optim.make_schedule(
        name="cosin", learning_rate=1.0, warmup_steps=0, total_steps=1
      ),
      r"optimizer\.schedule='cosin'.*Did you mean 'cosine'",
    ),
    (
      lambda: optim.make_optimizer(
        name="adam", schedule=optax.constant_schedule(1.0), **HYPER
      ),
      r"optimizer\.name='adam'.*Did you mean 'adamw'",
    ),
    (
      lambda: optim.make_optimizer(
        name="zzz", schedule=optax.constant_schedule(1.0), **HYPER
      ),
      r"optimizer\.name='zzz': choose one of \('adamw', 'adafactor', 'sgd'\)",
    ),
    *(
      (
        lambda name=name: first_update(name, weight_decay=0.1),
        rf"optimizer\.weight_decay=0\.1 with optimizer\.name='{name}'.*0, or",
      )
      for name in ("adafactor", "sgd")
    ),
  ],
)
def test_what_is_refused_says_the_way_out(call, message):
  with pytest.raises(ValueError, match=message):
    call()
