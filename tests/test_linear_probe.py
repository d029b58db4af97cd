"""Where a head begins, against the objective that its docstring states."""

import numpy as np
import pytest
from scipy import optimize, special

from perl_jax import linear_probe


def rows(n=120, width=6, *, noise=1.0, seed=0):
  """Features of unequal scale off the origin, labels, and a group of each."""
  generator = np.random.default_rng(seed)
  scales = 10.0 ** np.linspace(-1, 1, width)
  x = generator.normal(size=(n, width)) * scales
  score = (x / scales).sum(axis=1) + noise * generator.normal(size=n)
  groups = [str(i % 40) for i in range(n)]
  return (x + 3.0).astype(np.float32), score > 0.5, groups


def minimum(x, y, strength, *, bias):
  """(w, b) of the documented objective, by an optimiser of another kind."""
  x = np.asarray(x, np.float64)
  centred = x - x.mean(axis=0) if bias else x
  spread = np.mean(centred**2)
  sign = np.where(y, 1.0, -1.0)

  def objective(parameters):
    w, b = parameters[:-1], parameters[-1] * bias
    margins = sign * (x @ w + b)
    pull = -sign * special.expit(-margins)
    loss = np.logaddexp(0, -margins).sum() + spread * (w @ w) / (2 * strength)
    slope = x.T @ pull + spread * w / strength
    return loss, np.append(slope, pull.sum() * bias)

  found = optimize.minimize(
    objective,
    np.zeros(x.shape[1] + 1),
    jac=True,
    method="BFGS",
    options={"gtol": 1e-7, "maxiter": 5000},
  )
  return found.x[:-1], found.x[-1] * bias


@pytest.mark.parametrize("n, width", [(120, 6), (20, 50)])
def test_labelled_rows_give_the_minimum_of_the_objective(n, width):
  x, y, groups = rows(n, width)
  probe = linear_probe.fit(x, y, groups)
  w, b = minimum(x, y, probe.strength, bias=True)
  np.testing.assert_allclose(probe.weights, w, atol=2e-4 * np.abs(w).max())
  assert probe.bias == pytest.approx(b, abs=2e-3)


@pytest.mark.parametrize("n, width", [(120, 6), (20, 50)])
def test_pairs_give_the_minimum_of_the_objective(n, width):
  x, y, groups = rows(n, width)
  differences = np.where(y[:, None], x - 3.0, 3.0 - x)
  probe = linear_probe.fit(differences, None, groups)
  w, _ = minimum(differences, np.ones(n, bool), probe.strength, bias=False)
  np.testing.assert_allclose(probe.weights, w, atol=2e-4 * np.abs(w).max())
  assert probe.bias == 0.0


def test_scale_does_not_choose_the_strength():
  x, y, groups = rows()
  one, other = (linear_probe.fit(k * x, y, groups) for k in (1.0, 300.0))
  assert one.strength == other.strength
  np.testing.assert_allclose(one.weights, 300 * other.weights, rtol=1e-3)


def test_the_strength_has_the_least_loss_on_groups_that_were_held_out():
  x, y, groups = rows(noise=6.0)
  probe = linear_probe.fit(x, y, groups)
  names = sorted(set(groups))
  losses = []
  for strength in linear_probe.STRENGTHS:
    scores = np.empty(len(x))
    # Folds of other groups than its own: the choice should not turn on them.
    for k in range(5):
      out = np.isin(groups, names[k::5])
      w, b = minimum(x[~out], y[~out], strength, bias=True)
      scores[out] = x[out] @ w + b
    losses.append(np.logaddexp(0, np.where(y, -scores, scores)).mean())
  best = linear_probe.STRENGTHS[int(np.argmin(losses))]
  assert abs(np.log10(probe.strength / best)) <= 0.51
  assert probe.log_loss == pytest.approx(min(losses), abs=0.03)
  assert best < max(linear_probe.STRENGTHS)


def test_copies_of_a_row_are_held_out_together():
  """Labels are noise; each row is there six times, under one group."""
  generator = np.random.default_rng(1)
  x = np.repeat(generator.normal(size=(30, 60)), 6, axis=0)
  y = np.repeat(np.arange(30) % 2 == 0, 6)
  copies = [str(i // 6) for i in range(180)]
  assert linear_probe.fit(x, y, copies).accuracy < 0.7
  alone = [str(i) for i in range(180)]
  assert linear_probe.fit(x, y, alone).accuracy == 1.0


def test_rows_that_say_nothing_give_none():
  x, y, groups = rows()
  assert linear_probe.fit(x, y, ["one"] * len(x)) is None
  assert linear_probe.fit(x, np.ones(len(x), bool), groups) is None
  lone = np.arange(len(x)) == 7  # its fold leaves one label to the others
  assert linear_probe.fit(x, lone, groups) is None
  same = linear_probe.fit(np.zeros_like(x), None, groups)
  assert not same.weights.any()
