"""Which curves there are, and what they are drawn of."""

import math

from perl_jax.reporting import figures
from tests.reporting import runs


def titles(drawn):
  return [figure.title for figure in drawn]


def test_series_take_the_rows_that_have_the_key():
  rows = [
    {"step": 3, "a": 1.0},
    {"step": 1, "a": "nan"},
    {"step": 2, "b": 5},
    {"step": 3, "a": 2.0},
  ]
  steps, values = figures.series(rows, "a")
  assert steps.tolist() == [1, 3]
  assert math.isnan(values[0])
  assert values[1] == 2.0


def test_main_curves_come_in_the_order_of_the_vocabulary():
  names = ("ratio", "kl", "accuracy_low", "accuracy", "new_name", "loss")
  rows = [
    {"step": step} | {f"train/{name}": 0.5 for name in names}
    for step in range(3)
  ]
  rows[0] |= {"seconds/step": 1.0, "rate/tokens": 2.0}
  rows[1] |= {"seconds/step": 1.0, "rate/tokens": 2.0}
  main, others = figures.stage_figures("sft", rows)
  assert titles(main) == ["Loss", "Accuracy", "KL to the anchor"]
  assert titles(others) == [
    "Accuracy, lower end of the 95% interval",
    "Policy ratio",
    "New name",
  ]
  assert "% of target tokens" in main[1].alt
  main, _ = figures.stage_figures("sft", rows, leave_out=("loss", "kl"))
  assert titles(main) == ["Accuracy"]


def test_a_policy_is_drawn_against_its_anchor_and_its_kl():
  rows = runs.rl_metrics()
  drawn = figures.policy_figures(rows, runs.SUMMARY, "rl")
  assert titles(drawn) == [
    "Reward", "Gold success", "KL to the anchor", "Gold success against KL",
  ]  # fmt: skip
  assert "anchor: 41.2%" in drawn[1].alt
  assert "at 0 nats" in drawn[3].alt


def test_a_policy_has_a_reward_or_a_kl():
  assert figures.is_policy(runs.rl_metrics())
  assert figures.is_policy([{"step": 0, "validation/kl": 0.0}])
  assert not figures.is_policy(runs.reward_metrics())
  assert not figures.is_policy(runs.sft_metrics())


def test_values_that_are_not_finite_are_counted_not_drawn():
  rows = [{"step": i, "train/loss": 1.0} for i in range(5)]
  rows += [
    {"step": 5, "train/loss": math.nan},
    {"step": 6, "train/loss": "inf"},
  ]
  ((figure,), _) = figures.stage_figures("rl", rows)
  assert figure.note == "2 values that are not finite are left out."
  assert "from 1 at step 0 to 1 at step 4" in figure.alt
