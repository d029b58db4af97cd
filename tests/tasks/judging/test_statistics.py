"""Win rates against loops, the regression against scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from scipy import optimize
from sklearn import linear_model, metrics

from perl_jax.tasks.judging import statistics
from perl_jax.tasks.judging.statistics import LOSS, NONE, TIE, WIN, Bootstrap

FEW = Bootstrap(draws=50, seed=3)


def judged(rng, count=120, missing=0.1, lean=0.4):
  """Verdicts in both orders and differences of lengths that go with them."""
  differences = rng.normal(20, 60, count)
  pull = differences / 60 + lean + rng.normal(size=count)
  noise = rng.normal(size=(count, 2))
  verdicts = np.sign(np.round(pull[:, None] + noise)).astype(float)
  verdicts[rng.random((count, 2)) < missing] = NONE
  return verdicts, differences


@pytest.mark.parametrize(
  "first, second, outcome",
  [
    (WIN, WIN, WIN), (LOSS, LOSS, LOSS), (TIE, TIE, TIE),
    (WIN, LOSS, TIE), (LOSS, WIN, TIE), (WIN, TIE, TIE), (TIE, WIN, TIE),
    (LOSS, TIE, TIE), (TIE, LOSS, TIE),
    (NONE, WIN, NONE), (WIN, NONE, NONE), (NONE, NONE, NONE),
  ],
)  # fmt: skip
def test_a_win_has_to_hold_in_both_orders(first, second, outcome):
  found = statistics.outcomes(np.array([[first, second]]))
  np.testing.assert_equal(found, [outcome])


def test_rates_are_those_of_a_loop(rng):
  verdicts, differences = judged(rng)
  found = statistics.rates(verdicts, differences, FEW)
  wins = ties = losses = same = first = decided = 0
  for a, b in verdicts:
    if math.isnan(a) or math.isnan(b):
      continue
    if a == 1 and b == 1:
      wins += 1
    elif a == -1 and b == -1:
      losses += 1
    else:
      ties += 1
    same += a == b
    for shown_first in (a, -b):
      decided += shown_first != 0
      first += shown_first == 1
  n = wins + ties + losses
  assert 0 < n < len(verdicts) and min(wins, ties, losses) > 0
  assert found["judged"] == n
  for name, value in (
    ("win_rate", wins / n), ("tie_rate", ties / n), ("loss_rate", losses / n),
    ("win_rate_ties_half", (wins + ties / 2) / n), ("consistency", same / n),
    ("first_rate", first / decided),
  ):  # fmt: skip
    assert found[name] == pytest.approx(value), name


def test_the_interval_is_that_of_a_loop_over_resamples(rng, monkeypatch):
  verdicts, differences = judged(rng, missing=0.0)
  halves = (statistics.outcomes(verdicts) + 1) / 2
  generator, drawn, controlled = np.random.default_rng(3), [], []
  won = []
  for _ in range(50):
    rows = generator.integers(120, size=120)
    drawn.append(np.mean([halves[i] for i in rows]))
    won.append(sum(halves[i] == 1 for i in rows) / 120)
    # Length is measured on the scale of all rows, not on that of the draw.
    x = np.tanh(differences / differences.std())[rows]
    controlled.append(1 / (1 + np.exp(-by_scipy(halves[rows], x))))
  for part in (10**6, 7 * 120):  # all at once, or seven draws at a time
    monkeypatch.setattr(statistics, "_PART", part)
    found = statistics.rates(verdicts, differences, FEW)
    for name, values in (
      ("win_rate", won),
      ("win_rate_ties_half", drawn),
      ("win_rate_length_controlled", controlled),
    ):
      low, high = np.percentile(values, [2.5, 97.5])
      ends = found[f"{name}_low"], found[f"{name}_high"]
      assert ends == pytest.approx((low, high), abs=1e-4)
      assert ends[0] < found[name] < ends[1]
  other = statistics.rates(verdicts, differences, Bootstrap(50, seed=4))
  name = "win_rate_ties_half_low"
  assert found[name] != other[name]


def by_scipy(halves, x):
  """theta, minimising the loss as it is written down."""

  def loss(parameters):
    theta, phi = parameters
    p = 1 / (1 + np.exp(-theta - phi * x))
    likely = halves * np.log(p) + (1 - halves) * np.log(1 - p)
    return -likely.sum() + phi**2 / 2

  found = optimize.minimize(
    loss, [0.0, 0.0], method="Nelder-Mead",
    options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 2000},
  )  # fmt: skip
  return found.x[0]


@pytest.mark.parametrize("lean", [-1.0, 0.4, 2.0])
def test_the_regression_is_that_of_scikit_learn(rng, lean):
  """A tie is a row with half the weight on each side; C=1 is the penalty."""
  verdicts, differences = judged(rng, missing=0.0, lean=lean)
  halves = (statistics.outcomes(verdicts) + 1) / 2
  x = np.tanh(
    differences / np.sqrt(np.mean((differences - differences.mean()) ** 2))
  )
  model = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
  model.fit(
    np.concatenate([x, x])[:, None],
    np.repeat([1, 0], len(x)),
    sample_weight=np.concatenate([halves, 1 - halves]),
  )
  expected = 1 / (1 + np.exp(-model.intercept_[0]))
  found = statistics.length_controlled(halves, differences)
  assert found == pytest.approx([expected], abs=1e-6)
  assert abs(found[0] - halves.mean()) > 0.01  # length does matter here


def test_swapping_the_sides_gives_the_rest(rng):
  verdicts, differences = judged(rng)
  one = statistics.rates(verdicts, differences, FEW)
  other = statistics.rates(-verdicts, -differences, FEW)
  for name in ("win_rate_ties_half", "win_rate_length_controlled"):
    assert one[name] + other[name] == pytest.approx(1.0, abs=1e-9)
  assert one["win_rate"] == other["loss_rate"]


def test_what_length_cannot_say():
  equal = np.array([1.0, 0.5, 0.0, 1.0])
  same = statistics.length_controlled(equal, np.zeros(4))
  assert same == pytest.approx([equal.mean()])
  constant = statistics.length_controlled(equal, np.full(4, 3.0))
  assert np.isnan(constant).all()
  lengths = np.array([1.0, -2.0, 3.0, 0.0])
  for rate in (0.0, 1.0):
    assert statistics.length_controlled(np.full(4, rate), lengths) == [rate]


def test_a_judge_that_only_counts_letters_finds_no_winner(rng):
  """The longer one wins always, and the policy's is longer in most pairs."""
  differences = rng.normal(60, 60, 200)
  halves = (differences > 0).astype(float)
  (found,) = statistics.length_controlled(halves, differences)
  assert halves.mean() > 0.75 and 0.4 < found < 0.6


def test_many_hard_cases_converge(rng):
  for count in (2, 3, 5, 40):
    for _ in range(30):
      halves = rng.integers(0, 3, count) / 2
      differences = rng.integers(-3, 4, count) * 10.0 ** rng.integers(-3, 4)
      bootstrap = Bootstrap(40, 0)
      for counts in statistics.resamples(count, bootstrap):
        found = statistics.length_controlled(halves, differences, counts)
        known = found[~np.isnan(found)]
        assert ((known >= 0) & (known <= 1)).all()


def test_no_outcome_at_all():
  verdicts = np.full((3, 2), NONE)
  found = statistics.rates(verdicts, np.arange(3.0), FEW)
  assert found.pop("judged") == 0
  assert all(math.isnan(value) for value in found.values())


def test_agreement_is_that_of_scikit_learn(rng):
  first = rng.choice([WIN, TIE, LOSS, NONE], 200, p=[0.5, 0.2, 0.2, 0.1])
  second = np.where(rng.random(200) < 0.6, first, rng.permutation(first))
  found = statistics.agreement(first, second)
  both = [
    (int(a), int(b)) for a, b in zip(first, second, strict=True)
    if not math.isnan(a) and not math.isnan(b)
  ]  # fmt: skip
  a, b = zip(*both, strict=True)
  assert 0 < len(both) < 200 and found["judged"] == len(both)
  assert found["agreement"] == pytest.approx(metrics.accuracy_score(a, b))
  assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(a, b))


def test_agreement_of_judges_that_always_say_the_same():
  ones = np.full(4, WIN)
  found = statistics.agreement(ones, ones)
  assert found["agreement"] == 1.0 and math.isnan(found["kappa"])
  assert statistics.agreement(ones, -ones)["kappa"] == 0.0
