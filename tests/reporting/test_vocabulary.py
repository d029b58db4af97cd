"""Every metric that a run writes has a row, and every row has such a metric.

The keys are those of real runs: metrics.jsonl and summary.json of all stages
of the pipeline, and of runs whose loss, reward or estimator has metrics that
those have not.
"""

import numpy as np
import pytest

from perl_jax import files, sharding
from perl_jax.data import records
from perl_jax.data.sources import registry
from perl_jax.reporting import vocabulary
from perl_jax.tasks.training import timing
from perl_jax.tasks.training.compiled import Compiled
from tests import documents
from tests.tasks import tiny


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory, compiled_once):
  """{(stage, key)} of all runs; stage "" for the summary of the pipeline."""
  root = tmp_path_factory.mktemp("runs")
  sft, ensemble = str(finished / "sft"), str(root / "ensemble")
  tiny.run(root / "pointwise", "reward", reward__init=sft, loss="pointwise")
  tiny.run(root / "ensemble", "reward", reward__init=sft, ensemble=2)
  tiny.run(
    root / "grpo",
    "rl",
    policy__init=sft,
    reward__init=ensemble,
    reward__fn="perl_jax.data.sources.coffee_bar.rows:gold_reward",
    estimator="grpo",
    samples_per_prompt=2,
    kl__place="loss",
    kl__estimator="k3",
    entropy_coef=0.01,
    judge__by="gold",
  )
  tiny.run(
    root / "ppo",
    "rl",
    policy__init=sft,
    reward__init=str(finished / "reward"),
    estimator="ppo",
    ppo__value_clip=0.2,
  )
  tiny.run(root / "dpo", "dpo", policy__init=sft, nonfinite="skip")
  tiny.score_benchmarks(root / "score", str(finished / "reward"))
  tiny.run(
    root / "generate",
    "generate",
    policy__init=sft,
    reward__init=str(finished / "reward"),
    samples_per_prompt=2,
  )
  tiny.run(
    root / "judge",
    "judge",
    policy__init=str(finished / "rl"),
    judges=f'("gold", "reward:{finished / "reward"}")',
    same_rows="warn",
  )
  runs = [
    *((name, root / name) for name in ("score", "generate")),
    *((name, finished / name) for name in ("sft", "reward", "rl", "evaluate")),
    ("reward", root / "pointwise"),
    ("reward", root / "ensemble"),
    ("rl", root / "grpo"),
    ("rl", root / "ppo"),
    ("dpo", root / "dpo"),
    ("judge", root / "judge"),
  ]
  found = {("", key) for key in tiny.summary(finished)}
  for stage, workdir in runs:
    found |= {(stage, key) for key in tiny.summary(workdir)}
    for row in files.read_jsonl(workdir / "metrics.jsonl"):
      found |= {(stage, key) for key in row if key != "step"}
  return found


@pytest.fixture(scope="module")
def checked():
  """Names of what the checkers of all data sets say about a right response."""
  call = '{"api": {"order": {"item": "mocha", "quantity": "1"}}}'
  prompt = records.Prompt("id", "group", (), reference=call)
  return {
    name
    for source in registry.describe()
    for name in registry.checker(source)(prompt, call)
  }


@pytest.fixture(scope="module")
def timed():
  """Metrics of steps on a device whose peak is known, as a CPU's is not."""
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  step = Compiled(lambda x: x @ x, name="step")
  metrics = timing.StepMetrics(
    mesh, compiled=(step,), learning_rates={}, flops_of=(step,), peak=1.0
  )
  step(np.ones((2, 2), np.float32))
  metrics.count(None, {"rollout/tokens": 1})
  return set(metrics.of_steps(1))


@pytest.mark.slow
def test_every_metric_has_a_row(written, checked, timed):
  unknown = {
    (stage, key)
    for stage, key in written | {("rl", name) for name in checked | timed}
    if vocabulary.row_of(key, stage).name not in vocabulary.METRICS
  }
  assert unknown == set()


@pytest.mark.slow
def test_every_row_is_written_by_some_run(written, checked, timed):
  found = {vocabulary.row_of(key, stage).name for stage, key in written}
  assert set(vocabulary.METRICS) - found - checked - timed == set()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["from-trl.md", "from-tunix.md"])
def test_metrics_beside_those_of_others_are_written(written, timed, page):
  """But for those of functions, which have their labels."""
  text = documents.text(documents.DOCS / page)
  named = {name for _, name in documents.metrics(text, "here")}
  keys = {key for _, key in written} | timed
  assert named - keys == {"rollout/reward_fn_LABEL"}


@pytest.mark.parametrize(
  "key, stage, name",
  [
    ("train/loss", "rl", "loss"),
    ("train/loss", "sft", "sft.loss"),
    ("sft.loss", "", "sft.loss"),
    ("validation/gold", "", "gold"),
    ("rl.reward_before", "", "reward"),
    ("reward.accuracy_low", "", "accuracy"),
    ("accuracy_member_11", "reward", "accuracy"),
    ("validation/reward_fn_short", "rl", "reward_fn"),
    ("evaluate.policy.kl", "", "kl"),
    ("evaluate.reward_model.auroc", "", "auroc"),
    ("evaluate.reward_model.accuracy_in_mt-bench-easy", "", "accuracy"),
    ("accuracy_in_safety_low", "score", "accuracy"),
    ("rm_bench_hard_high", "score", "rm_bench_hard"),
    ("n", "score", "score.n"),
    ("n", "evaluate", "n"),
    ("rl.kl_at_step_0", "", "kl"),
    ("train/score", "reward", "score"),
    ("seconds/score", "rl", "seconds/score"),
    ("seconds.score", "", "seconds"),
    ("seconds.total", "", "seconds"),
    ("rl.seconds_compiling", "", "seconds_compiling"),
    ("memory.rl", "", "peak_bytes"),
    ("rate/score", "", "rate/score"),
    (
      "judge.by.gold.win_rate_length_controlled_high",
      "",
      "win_rate_length_controlled",
    ),
    ("by.gold_and_other.kappa", "judge", "kappa"),
  ],
)
def test_the_row_of_a_key(key, stage, name):
  assert vocabulary.row_of(key, stage).name == name
  assert name in vocabulary.METRICS


@pytest.mark.parametrize(
  "key", ["pass_rate", "train/pass_rate", "seconds/rest", "sft.pass_rate_after"]
)
def test_an_unknown_key_has_a_plain_row(key):
  row = vocabulary.row_of(key)
  assert row.name not in vocabulary.METRICS
  assert not (row.unit or row.percent or row.better or row.main or row.check)
  assert vocabulary.rank_of(key) == len(vocabulary.METRICS)


@pytest.mark.parametrize(
  "key, unit, label",
  [
    ("gold", False, "gold success"),
    ("gold", True, "gold success"),
    ("rl.kl", True, "KL to the anchor (nats)"),
    ("accuracy_member_3", False, "accuracy, member 3"),
    ("accuracy_in_hep-cpp", False, "accuracy, hep-cpp"),
    (
      "accuracy_in_chat_low",
      False,
      "accuracy, chat, lower end of the 95% interval",
    ),
    ("rollout/reward_fn_is_right", False, "reward from the function, is right"),
    (
      "rl.reward_fn_short_after",
      False,
      "reward from the function, short, after",
    ),
    ("reward_fn_before", False, "reward from the function, before"),
    ("rl.length_before", True, "response length, before (tokens)"),
    ("rate/tokens", True, "throughput (tokens/s)"),
    ("train/pass_rate", True, "pass rate"),
    (
      "judge.by.gold.win_rate_ties_half_low",
      True,
      "win rate, a tie as half, lower end of the 95% interval",
    ),
    ("seconds/first_call", True, "first call"),
  ],
)
def test_the_label_of_a_key(key, unit, label):
  assert vocabulary.label_of(key, unit=unit) == label


def test_rows_are_fit_to_be_shown():
  for name, row in vocabulary.METRICS.items():
    assert row.name == name
    assert row.label
    assert row.better in (-1, 0, 1)
    assert row.percent == row.unit.startswith("%")
    assert row.percent or not row.check
