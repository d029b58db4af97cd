"""Whole runs on reward functions: what is trained on, saved and reported."""

import time

import pytest

from perl_jax import tasks
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.training import inputs
from tests.tasks import tiny
from tests.tasks.rollouts.test_rewards import HERE, SEEN

GOLD = "perl_jax.data.coffee_bar:gold_reward"
SHORT = {"steps": 2, "eval_every": 1}
RUNS = "tests.tasks.rollouts.test_reward_runs"
CALLS, TIRED = [0], []  # calls of `sleepy`, and those that it sleeps in


def sleepy(prompts, responses, rows):
  CALLS[0] += 1
  if CALLS[0] in TIRED:
    time.sleep(60)
  return [len(text) / 10 for text in responses]


@pytest.mark.slow
def test_rl_on_a_function_alone(tmp_path, sft_run):
  """No reward model is loaded, and the reward is the function's verdict."""
  workdir = tmp_path / "run"
  tiny.run(
    workdir, "rl", policy__init=str(sft_run), reward__fn=GOLD,
    reward__fn_weight=2.0, sampling__temperature=0.5, **SHORT,
  )  # fmt: skip
  rows = tiny.lines(workdir)
  judged = [row for row in rows if "validation/reward" in row]
  assert len(judged) == 3
  for row in judged:
    assert row["validation/reward"] == 2.0 * row["validation/gold"]
  samples = tiny.lines(workdir, "samples.jsonl")
  assert all(s["policy_reward"] == 2 * s["policy_gold"] for s in samples)
  assert not any("reward_model" in key for row in rows for key in row)
  evaluated = tiny.run(
    tmp_path / "judged", "evaluate", policy__init=str(workdir), reward__fn=GOLD
  )
  for side in ("policy", "anchor"):
    assert evaluated[f"{side}.reward"] == evaluated[f"{side}.gold"]


@pytest.mark.slow
def test_rl_on_the_length_of_responses_learns_from_each_row(
  tmp_path, sft_run, reward_run
):
  """Beside a model: the parts add up, in training and in judging."""
  workdir = tmp_path / "run"
  config = tiny.config(
    "rl", policy__init=str(sft_run), reward__init=str(reward_run),
    reward__fn=f"{HERE}:length", reward__fn_weight=-0.1, **SHORT,
  )  # fmt: skip
  SEEN.clear()
  tasks.run(config, workdir)
  data = inputs.read(
    config, tokenization_lib.load_tokenizer(sft_run / "tokenizer"), "prompts"
  )
  kind = "coffee_bar/prompts"
  held_out = [f"{kind}/validation/{i}" for i in range(8)]
  trained = [
    [f"{kind}/train/{i}" for i in next(data.train).index] for _ in range(2)
  ]
  tried, again, first, one, second, two, third = SEEN
  assert tried == again == held_out[:2]
  assert sorted(first) == sorted(second) == sorted(third) == held_out
  assert [one, two] == trained
  rows = tiny.lines(workdir)
  for prefix, count in (("rollout", 2), ("validation", 3)):
    found = [row for row in rows if f"{prefix}/reward_fn" in row]
    assert len(found) == count
    for row in found:
      model, fn = (row[f"{prefix}/reward_{part}"] for part in ("model", "fn"))
      assert row[f"{prefix}/reward"] == pytest.approx(model + fn, abs=1e-5)
      assert fn < 0


def test_a_bad_function_leaves_nothing_behind(tmp_path, sft_run):
  workdir = tmp_path / "run"
  with pytest.raises(ValueError, match="given 2 responses"):
    tiny.run(
      workdir, "rl", policy__init=str(sft_run), reward__fn=f"{HERE}:one_short"
    )
  assert not workdir.exists()


def test_a_value_model_cannot_start_from_a_function(tmp_path, sft_run):
  with pytest.raises(ValueError, match=r"value\.init='reward' needs a reward"):
    tiny.run(
      tmp_path / "run", "rl", policy__init=str(sft_run), reward__fn=GOLD,
      value__init="reward",
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_that_waits_too_long_saves_and_goes_on_alike(tmp_path, sft_run):
  """Tried twice, the anchor judged, two steps made: the sixth call sleeps."""
  given = {
    "policy__init": str(sft_run), "steps": 4, "eval_every": 4,
    "reward__fn": f'("{RUNS}:sleepy=0.5", "{GOLD}=2")',
  }  # fmt: skip
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  TIRED.clear()
  tiny.run(whole, "rl", **given)
  CALLS[0], TIRED[:] = 0, [6]
  with pytest.raises(ValueError, match=r"sleepy' took longer than .*=2 sec"):
    tiny.run(broken, "rl", reward__timeout=2.0, **given)
  assert tiny.kept(broken) == [2]
  # With another time, as the message says; and with a mended function.
  tiny.run(broken, "rl", reward__timeout=0.0, **given)
  assert tiny.lines(broken) == tiny.lines(whole)
  for row in tiny.lines(whole):
    for prefix in ("rollout", "validation"):
      if f"{prefix}/reward" in row:
        sleepy_, gold = (
          row[f"{prefix}/reward_fn_{label}"]
          for label in ("sleepy", "gold_reward")
        )
        assert row[f"{prefix}/reward"] == pytest.approx(
          0.5 * sleepy_ + 2 * gold, rel=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["reinforce", "rloo", "grpo"])
def test_a_first_batch_in_which_no_response_is_right(
  tmp_path, sft_run, estimator
):
  """0 / 1 rewards that are all 0, without a KL: nothing to learn, no error."""
  group = 1 if estimator == "reinforce" else 2
  tiny.run(
    tmp_path, "rl", policy__init=str(sft_run), reward__fn=GOLD, beta=0.0,
    unstopped_penalty=0.0, estimator=estimator, samples_per_prompt=group,
    **SHORT,
  )  # fmt: skip
  trained = [r for r in tiny.lines(tmp_path) if "rollout/signal" in r]
  assert len(trained) == 2
  for row in trained:
    assert row["rollout/reward"] == row["rollout/signal"] == 0.0
    assert row["train/update_norm"] == 0.0
    assert row.get("rollout/equal_rewards", 1.0) == 1.0
