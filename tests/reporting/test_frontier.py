"""Quality against KL: of several settings, with seeds, and across beta."""

import math

import numpy as np
import pytest

from perl_jax.reporting import comparison, frontier, settings
from tests.reporting import runs

STEPS = (0, 50, 100)


def run(seed, beta, *, ensemble=1, combine="mean", judged=True, gold=True):
  """A run with KL 1 / beta at its end, and what an ensemble would add."""
  rows = []
  for step in STEPS:
    share = step / 100
    row = {"step": step, "validation/kl": share / beta + 0.1 * seed * share}
    row["validation/reward"] = share
    if gold:
      row["validation/gold"] = 0.4 + 0.1 * share * ensemble + 0.01 * seed
    if judged:
      row["validation/win_rate"] = 0.5 + share * (0.1 * ensemble + 0.02 * seed)
    rows.append(row)
  fields = {
    "task": "rl", "seed": seed, "beta": beta,
    "reward": {"combine": combine, "ensemble": ensemble},
  }  # fmt: skip
  name = f"{combine}_{ensemble}_{beta}_{seed}"
  stages = [runs.stage("rl", metrics=rows)]
  return settings.Run(name, settings.flat(fields), stages, {})


KINDS = ((1, "mean"), (4, "mean"), (4, "average"))


@pytest.fixture(scope="module")
def found():
  made = [
    run(seed, beta, ensemble=ensemble, combine=combine)
    for ensemble, combine in KINDS
    for beta in (0.4, 0.1)
    for seed in (0, 1, 2)
  ]
  return settings.gather(made, ())


def test_seeds_are_a_mean_and_a_band_along_training(found):
  assert len(found) == 6 and {len(s.runs) for s in found} == {3}
  line = frontier._along(found[0], "rl", "win_rate", "c1", "points")
  # Seeds 0, 1, 2 at beta 0.4: KL 2.5, 2.6, 2.7; win rates 0.6, 0.62, 0.64.
  np.testing.assert_allclose(line.x, [0.0, 1.3, 2.6])
  np.testing.assert_allclose(line.y, [0.5, 0.56, 0.62])
  np.testing.assert_allclose(line.band[0], [0.5, 0.55, 0.6])
  np.testing.assert_allclose(line.band[1], [0.5, 0.57, 0.64])


def test_single_ensemble_and_average_are_lines_across_beta(found):
  across = list(frontier._across(found, "rl", "win_rate", ()))
  assert [line.label for line in across] == [
    "combine mean, ensemble 1",
    "combine mean, ensemble 4",
    "combine average, ensemble 4",
  ]
  single, ensemble, _ = across
  assert single.marks == ensemble.marks == ("0.1", "0.4")
  np.testing.assert_allclose(single.x, [10.1, 2.6])
  np.testing.assert_allclose(single.y, [0.62, 0.62])
  np.testing.assert_allclose(ensemble.y, [0.92, 0.92])
  np.testing.assert_allclose(ensemble.band[1], [0.94, 0.94])
  assert len({line.colour for line in across}) == 3


def test_a_step_that_one_seed_has_not_is_that_of_the_others():
  short = run(1, 0.4)
  short.stages[0].metrics.pop()
  (setting,) = settings.gather([run(0, 0.4), short], ())
  line = frontier._along(setting, "rl", "gold", "c1", "points")
  np.testing.assert_allclose(line.x, [0.0, 1.275, 2.5])
  np.testing.assert_allclose(line.y, [0.405, 0.455, 0.5])
  assert not np.isnan(line.band).any()


@pytest.mark.parametrize(
  "fields, names",
  [
    ({}, ["gold", "win_rate"]),
    ({"judged": False}, ["gold"]),
    ({"gold": False}, ["win_rate"]),
    ({"gold": False, "judged": False}, ["reward"]),
  ],
)
def test_what_others_say_comes_before_the_reward(fields, names):
  found = settings.gather([run(0, 0.4, **fields)], ())
  assert frontier.names_of(found, "rl") == names


def test_the_page_shows_all_of_it(found):
  text = comparison.render("compared", found, ())
  runs.Checker(text)
  assert "What a nat of KL buys" in runs.headings(text)
  for title in (
    "Gold success, along training", "Gold success, at the end, by beta",
    "Win rate against the anchor, a tie as half, along training",
    "Win rate against the anchor, a tie as half, at the end, by beta",
  ):  # fmt: skip
    assert title in text
  # Without another beta there is nothing across it.
  same = [s for s in found if s.value("beta") == 0.4]
  text = comparison.render("compared", same, ())
  assert "along training" in text and "by beta" not in text
  nothing = settings.gather([run(0, math.inf)._replace(stages=[])], ())
  assert frontier.render(nothing, ("rl",)) == ""
