"""Several runs on one page: settings, their differences, their curves."""

import html
import re

import numpy as np
import pytest

from perl_jax.reporting import comparison, settings
from tests.reporting import runs

PATHS = ("policy.init", "base")


def run(seed, *, tuning="lora", shift=0.0, path=None, label="", **config):
  """A run of RL whose validation metrics are those of `runs`, shifted."""
  rate = {"lora": 1e-3, "full": 1e-4}[tuning]
  fields = {
    "task": "rl",
    "seed": seed,
    "tuning": tuning,
    "optimizer": {"learning_rate": rate},
    "policy": {"init": f"runs/seed_{seed}/sft/"},
    "beta": 0.4,
  }
  metrics = [
    {k: v + shift if k == "validation/gold" else v for k, v in row.items()}
    for row in runs.rl_metrics(120)
  ]
  summary = {
    "rl.gold_before": 0.41,
    "rl.gold_after": 0.7 + shift,
    "rl.kl": 5.0,
    "rl.trainable_parameters": 100 if tuning == "lora" else 1000,
    "seconds.rl": 30.0 if tuning == "lora" else 40.0,
    "memory.rl": 2**20 if tuning == "lora" else 2**22,
  }
  return settings.Run(
    path or f"runs/{tuning}_{seed}_{shift}",
    settings.flat(fields | config),
    [runs.stage("rl", metrics=metrics)],
    summary,
    label,
  )


def test_seeds_of_one_config_are_one_setting():
  found = settings.gather(
    [run(0), run(0, tuning="full"), run(1), run(2), run(1, tuning="full")],
    PATHS,
  )
  assert [[r.config["seed"] for r in s.runs] for s in found] == [
    [0, 1, 2],
    [0, 1],
  ]
  assert [s.label for s in found] == [
    "tuning lora, learning_rate 0.001",
    "tuning full, learning_rate 0.0001",
  ]
  assert settings.differences(found, PATHS) == [
    "tuning",
    "optimizer.learning_rate",
  ]


def test_what_is_not_a_repetition():
  """The same seed twice, and another stage under the same kind of field."""
  found = settings.gather([run(0, path="a/x"), run(0, path="a/y")], PATHS)
  assert [s.label for s in found] == ["x", "y"]
  other = {"policy": {"init": "runs/seed_1/other"}}
  assert len(settings.gather([run(0), run(1, **other)], PATHS)) == 2
  assert len(settings.gather([run(0), run(1)], ())) == 2


def test_a_label_makes_a_setting_of_anything():
  found = settings.gather(
    [run(0, label="A"), run(0, beta=0.1, label="A"), run(1)], PATHS
  )
  assert [(s.label, len(s.runs)) for s in found] == [
    ("A", 2),
    ("lora_1_0.0", 1),
  ]


def test_a_curve_has_a_row_for_each_run_and_gaps_where_it_has_no_point():
  short = run(1)
  cut = [row for row in short.stages[0].metrics if row["step"] < 60]
  short = short._replace(stages=[runs.stage("rl", metrics=cut)])
  (setting,) = settings.gather([run(0, shift=0.1), short], PATHS)
  steps, values = setting.curve("rl", "validation/gold")
  assert steps.tolist() == [0, 50, 100, 119] and values.shape == (2, 4)
  assert np.isnan(values[1]).tolist() == [False, False, True, True]
  np.testing.assert_allclose(values[0, :2] - values[1, :2], 0.1)


def compared():
  """The page of three seeds of LoRA and three of full tuning."""
  shifts = (-0.1, 0.0, 0.1)
  found = [run(seed, shift=s) for seed, s in enumerate(shifts)]
  found += [run(seed, tuning="full", shift=s) for seed, s in enumerate(shifts)]
  return comparison.render("compared", settings.gather(found, PATHS), PATHS)


@pytest.fixture(scope="module")
def text():
  return compared()


def rows_of(text):
  """Text of the cells of each row of the tables of a page."""
  found = []
  for row in re.findall(r"<tr>(.*?)</tr>", text, flags=re.DOTALL):
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
    found.append([html.unescape(re.sub("<[^>]+>", "", c)) for c in cells])
  return found


def test_the_page_has_means_spreads_and_differences(text):
  runs.Checker(text)
  assert runs.headings(text) == [
    "What came out",
    "What differs",
    "LoRA against full tuning",
    "What a nat of KL buys",
    "Curves of each stage",
  ]
  rows = rows_of(text)
  gold = "rl: gold success, after"
  assert [gold, "70.0% ± 10.0%", "70.0% ± 10.0%"] in rows
  assert ["optimizer.learning_rate", "0.001", "0.0001"] in rows
  assert "6 runs of 2 settings" in text


def test_lora_against_full_has_ratios_of_costs(text):
  assert [
    "gold success, after",
    "70.0% ± 10.0%",
    "70.0% ± 10.0%",
    "+0.0 points",
  ] in rows_of(text)
  assert ["rl: time", "30.0 s", "40.0 s"] in rows_of(text)
  costs = {row[0]: row[-1] for row in rows_of(text) if len(row) == 4}
  assert costs["trainable parameters"] == "10.0%"
  assert costs["time"] == "75.0%"
  assert costs["peak memory of a device"] == "25.0%"


def test_settings_that_differ_in_more_are_not_lora_against_full():
  found = settings.gather([run(0), run(0, tuning="full", beta=0.1)], PATHS)
  assert "LoRA against full" not in comparison.render("x", found, PATHS)


def judged(path, rate, **config):
  """A judgement of a policy by two judges, as the task `judge` leaves it."""
  numbers = {"win_rate": rate - 0.1, "win_rate_ties_half": rate}
  numbers |= {"win_rate_ties_half_low": rate - 0.05}
  numbers |= {"win_rate_ties_half_high": rate + 0.05}
  summary = {
    f"judge.by.{judge}.{name}": value
    for judge in ("gold", "other.one")
    for name, value in numbers.items()
  }
  summary |= {"judge.n": 9, "judge.policy.kl": 3.0, "judge.anchor.length": 7.0}
  fields = {"task": "judge", "seed": 0, "policy": {"init": path}} | config
  return settings.Run(path, settings.flat(fields), [], summary)


def test_judged_policies_are_compared_by_their_judges():
  found = settings.gather([judged("a", 0.5), judged("b", 0.7)], PATHS)
  rows = rows_of(comparison.render("x", found, PATHS))
  for judge in ("gold", "other.one"):
    assert [
      f"judge: win rate, a tie as half, by {judge}",
      "50.0% (45.0% to 55.0%)",
      "70.0% (65.0% to 75.0%)",
    ] in rows
  assert ["judge: KL to the anchor (nats)", "3.000", "3.000"] in rows
  assert not any("length" in row[0] for row in rows)


def test_evaluations_are_compared_and_repeat_no_stage():
  measured = {
    "evaluate.n": 9,
    "evaluate.policy.gold": 0.8,
    "evaluate.policy.kl": 3.0,
    "evaluate.anchor.gold": 0.4,
    "evaluate.reward_model.accuracy": 0.6,
  }
  alone = [
    settings.Run(path, {"task": "evaluate", "x": path}, [], measured)
    for path in "ab"
  ]
  found = rows_of(comparison.render("x", settings.gather(alone, ()), ()))
  assert ["evaluate: gold success", "80.0%", "80.0%"] in found
  assert ["evaluate: accuracy", "60.0%", "60.0%"] in found
  piped = [
    one._replace(
      summary=measured
      | {"rl.gold_after": 0.8, "rl.kl": 3.0, "reward.accuracy": 0.6}
    )
    for one in alone
  ]
  found = rows_of(comparison.render("x", settings.gather(piped, ()), ()))
  assert ["rl: gold success, after", "80.0%", "80.0%"] in found
  assert not any(row[0].startswith("evaluate") for row in found)


@pytest.mark.parametrize("value", [0.1, 0.7, 0.0])
def test_equal_seeds_have_no_spread(value):
  """Three times 0.1 have a deviation of 1.7e-17 in float64."""
  assert "±" not in comparison.spread("loss", np.array([value] * 3))
  assert "±" in comparison.spread("loss", np.array([value, value + 1.0]))


def test_a_band_is_drawn_for_several_seeds_only(text):
  def bands(text):
    return len(re.findall(r"FillBetween|PolyCollection", text))

  assert bands(text) > 0
  single = settings.gather([run(0), run(0, tuning="full")], PATHS)
  assert not bands(comparison.render("x", single, PATHS))
