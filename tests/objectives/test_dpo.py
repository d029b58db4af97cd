"""DPO's loss and implicit rewards against their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import preference

NAMES = (
  "chosen_logprobs",
  "rejected_logprobs",
  "anchor_chosen_logprobs",
  "anchor_rejected_logprobs",
)
OPTIONS = (
  {"beta": 0.1},
  {"beta": 0.5, "label_smoothing": 0.2},
  {"beta": 0.3, "kind": "ipo"},
)


def draw(seed, size=6):
  rows = np.random.default_rng(seed).normal(-20.0, 5.0, size=(4, size))
  return rows.astype(np.float32)


def run(rows, **options):
  return preference.dpo_loss(**dict(zip(NAMES, rows, strict=True)), **options)


def test_hand_computed():
  rows = [[-1.0], [-4.0], [-3.0], [-2.0]]  # d = 2 and -2
  rows = [jnp.array(row) for row in rows]
  loss, chosen, rejected = run(rows, beta=0.5)
  np.testing.assert_allclose((chosen, rejected), [[1.0], [-1.0]])
  np.testing.assert_allclose(loss, [0.1269280], rtol=1e-6)  # log(1 + e^-2)
  smoothed, _, _ = run(rows, beta=0.5, label_smoothing=0.25)
  np.testing.assert_allclose(smoothed, [0.6269280], rtol=1e-6)
  squared, *rewards = run(rows, beta=0.5, kind="ipo")
  np.testing.assert_allclose(squared, [9.0])  # (4 - 1)^2
  np.testing.assert_allclose(rewards, [[1.0], [-1.0]])


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_slow_loop_and_jit(options):
  rows = draw(0)
  beta, smoothing = options["beta"], options.get("label_smoothing", 0.0)
  expected = np.zeros((3, 6))
  for i, (a, b, c, d) in enumerate(rows.T.astype(np.float64)):
    chosen, rejected = beta * (a - c), beta * (b - d)
    margin = chosen - rejected
    if "kind" in options:
      loss = (margin / beta - 0.5 / beta) ** 2
    else:
      right = 1 / (1 + np.exp(-margin))
      loss = -(1 - smoothing) * np.log(right) - smoothing * np.log1p(-right)
    expected[:, i] = loss, chosen, rejected
  for call in (run, jax.jit(functools.partial(run, **options))):
    found = call(rows, **options) if call is run else call(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
  "options, start",
  [
    ({"beta": 0.1}, np.log(2)),
    ({"beta": 0.1, "label_smoothing": 0.3}, np.log(2)),
    ({"beta": 0.1, "kind": "ipo"}, 25.0),
  ],
)
def test_where_the_policy_is_the_anchor(options, start):
  rows = draw(1)
  rows[2:] = rows[:2]
  loss, chosen, rejected = run(rows, **options)
  np.testing.assert_allclose(loss, np.full(6, start), rtol=1e-6)
  assert not np.any(chosen) and not np.any(rejected)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_in_closed_form(options):
  rows = draw(2)
  beta, smoothing = options["beta"], options.get("label_smoothing", 0.0)
  gradients = jax.jit(jax.grad(lambda r: jnp.sum(run(r, **options)[0])))(rows)
  h = (rows[0] - rows[2] - rows[1] + rows[3]).astype(np.float64)
  if "kind" in options:
    slope = 2 * (h - 0.5 / beta)
  else:
    wrong = 1 / (1 + np.exp(beta * h))
    slope = -beta * (wrong - smoothing)
  zero = np.zeros(6)
  np.testing.assert_allclose(
    gradients, [slope, -slope, zero, zero], rtol=1e-4, atol=1e-6
  )


def test_it_is_the_reward_models_loss_on_implicit_rewards():
  loss, chosen, rejected = run(draw(3), beta=0.2)
  np.testing.assert_allclose(
    loss, preference.pairwise_preference_loss(chosen, rejected), rtol=1e-4
  )


def test_stable_far_out():
  rows = [jnp.array([x, -x]) for x in (1e4, -1e4, 0.0, 0.0)]
  np.testing.assert_allclose(run(rows, beta=0.5)[0], [0.0, 1e4])
  gradient = jax.grad(lambda r: jnp.sum(run(r, beta=0.5)[0]))(rows)
  np.testing.assert_allclose(gradient[0], [0.0, -0.5])


@pytest.mark.parametrize(
  "options, message",
  [
    ({"beta": 0.0}, "beta=0.0 must be > 0"),
    ({"beta": float("nan")}, "beta=nan must be > 0"),
    ({"label_smoothing": 0.5}, r"label_smoothing=0.5 must be in \[0, 0.5\)"),
    ({"label_smoothing": -0.1}, "label_smoothing=-0.1 must be"),
    ({"kind": "hinge"}, "kind='hinge': choose one of sigmoid, ipo"),
    (
      {"kind": "ipo", "label_smoothing": 0.1},
      "label_smoothing=0.1 belongs to kind",
    ),
  ],
)
def test_refusals(options, message):
  with pytest.raises(ValueError, match=message):
    run(draw(4), **{"beta": 0.1} | options)


@pytest.mark.parametrize("which", range(4))
def test_strict_about_types_and_shapes(which):
  for bad in (jnp.zeros(1), jnp.zeros((6, 1)), jnp.zeros(6, jnp.bfloat16)):
    rows = [jnp.zeros(6)] * 4
    rows[which] = bad
    with pytest.raises(AssertionError):
      run(rows, beta=0.1)
