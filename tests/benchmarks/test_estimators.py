"""The benchmarks that train policies on the coffee orders, at toy size."""

import pytest

from benchmarks import coffee, estimators, overoptimisation
from tests.tasks import tiny

pytestmark = pytest.mark.usefixtures("compiled_once")

# Fields that configs/rl.py and configs/dpo.py both have.
POLICY = {
  name: value
  for name, value in tiny.fields("rl").items()
  if not name.startswith(("steps", "batch_size", "eval_every", "value."))
} | {"microbatches": 1}


def settings(workdir):
  return coffee.Settings(
    workdir, tiny.fields("sft"), tiny.fields("reward"), POLICY
  )


def test_budget_is_the_same_responses_for_all(tmp_path):
  for method in (*estimators.METHODS, estimators.DPO):
    config = estimators.policy_config(
      method, 1, tmp_path, tmp_path, iterations=6, responses=32
    )
    each = 2 if method == estimators.DPO else config.get("samples_per_prompt")
    assert config.batch_size * each == 32 and config.steps == 6
    assert config.seed == 1 and config.is_locked


def test_tables_by_hand(tmp_path):
  runs = [
    {"gold_before": 0.4, "gold_after": gold, "kl": kl, "seconds": 10.0}
    for gold, kl in ((0.5, 0.2), (0.6, 0.4))
  ]
  table = estimators.table({"rloo": runs})
  assert "| rloo | 40.0% ± 0.0 | 55.0% ± 7.1 | 0.30 | 10 |" in table
  curve = [(0.45, 0.0, -0.1), (0.6, 0.3, 0.8), (0.5, 0.9, 1.5)]
  table = overoptimisation.table({"min": curve})
  assert "| min | 45.0% | 60.0%, 0.30 | 50.0%, 0.90 | -0.10 to 1.50 |" in table
  table = overoptimisation.curves({"min": curve}, every=16)
  assert "| min | 45.0%, 0.00 | 60.0%, 0.30 | 50.0%, 0.90 |" in table
  assert "| gold, KL at iteration | 0 | 16 | 32 |" in table


@pytest.mark.nightly
def test_toy_runs_and_their_resumption(tmp_path):
  given = {"seeds": 1, "iterations": 2, "responses": 8}
  methods = ("rloo", estimators.DPO)
  found = estimators.run(settings(tmp_path), methods=methods, **given)
  assert set(found) == set(methods)
  for (run,) in found.values():
    assert run["kl_at_step_0"] == 0.0 and 0 <= run["gold_after"] <= 1
  # What has finished is taken as it is, the seconds too.
  again = estimators.run(settings(tmp_path), methods=methods, **given)
  assert again == found


@pytest.mark.nightly
def test_toy_run_of_every_kind_of_reward(tmp_path):
  small = settings(tmp_path)
  found = overoptimisation.run(
    coffee.Settings(
      small.workdir, small.anchor, small.reward, POLICY | {"batch_size": 4}
    ),
    beta=0.1,
    learning_rate=1e-3,
    steps=2,
    every=1,
  )
  assert set(found) == set(overoptimisation.KINDS)
  for curve in found.values():
    assert len(curve) == 3 and curve[0][1] == 0.0
