"""What is said of a policy that has gone wrong, and of one that has not.

The figures are of real runs: SmolLM2 with REINFORCE at ten times the learning
rate that suits it, GRPO on coffee orders with half of its beta, and the run of
configs/smollm2.py, which is good.
"""

import numpy as np
import pytest

from perl_jax.reporting import diagnostics

ANCHOR = {
  "kl": 0.0,
  "kl_per_token": 0.0,
  "length": 46.0,
  "stop_rate": 0.5,
  "repetition": 0.04,
  "reward": -0.12,
  "gold": 0.446,
}


def said(n=512, before=(), variances=(), **now):
  """Kinds of what is said of a run with these evaluations."""
  rows = [{"step": 0} | evaluation(ANCHOR | dict(before))]
  for step, variance in variances:
    rows.append({"step": step, "train/explained_variance": variance})
  rows.append({"step": 20, "train/loss": 0.1})
  rows.append({"step": 20} | evaluation(ANCHOR | now))
  return [found.kind for found in diagnostics.of(rows, n)]


def evaluation(values):
  return {f"validation/{name}": value for name, value in values.items()}


def test_a_policy_that_says_sorry_for_ever():
  found = said(
    kl=14.0, kl_per_token=1.5, length=9.0, stop_rate=1.0, repetition=0.3,
    reward=0.55, gold=0.446,
  )  # fmt: skip
  assert found == ["kl", "length", "repetition"]


def test_a_good_run():
  before = {"length": 57.8, "stop_rate": 0.25, "reward": -0.57}
  assert not said(
    before=before, kl=3.26, kl_per_token=0.106, length=30.7, stop_rate=0.81,
    repetition=0.003, reward=-0.32,
  )  # fmt: skip
  assert not said(kl=0.35, kl_per_token=0.03, reward=0.86, gold=0.684)


def test_a_long_response_may_have_more_kl():
  assert said(kl=20.0, kl_per_token=0.02) == []
  assert said(kl=20.0, kl_per_token=0.2) == ["kl"]


def test_a_check_that_falls_while_the_reward_rises():
  """GRPO: two standard errors of 512 and 512 responses are 6 points."""
  assert said(gold=0.305, reward=1.3) == ["gold"]
  assert said(gold=0.305, reward=-0.2) == []
  assert said(gold=0.39, reward=1.3) == []
  assert said(gold=0.38, reward=1.3) == ["gold"]
  assert said(n=None, gold=0.305, reward=1.3) == []
  assert said(n=32, gold=0.305, reward=1.3) == []


def test_responses_that_are_cut():
  assert said(stop_rate=0.2) == ["stop_rate"]
  assert said(stop_rate=0.3) == []


def test_responses_that_are_cut_where_most_were_before():
  """Of 64 tokens the anchor has 53: they cannot be twice as long."""
  before = {"length": 53.0, "stop_rate": 0.24}
  assert said(before=before, length=64.0, stop_rate=0.0) == ["stop_rate"]
  assert said(before=before, length=58.0, stop_rate=0.1) == []
  assert said(before={"stop_rate": 0.08}, stop_rate=0.0) == []


@pytest.mark.parametrize("length, told", [(91.0, 0), (93.0, 1), (22.0, 1)])
def test_length_either_way(length, told):
  assert said(length=length) == ["length"] * told
  assert said(before={"length": 3.0}, length=1.0) == []  # two tokens


def test_a_value_model_that_explains_less_than_nothing():
  bad = [(step, -0.3) for step in range(10, 16)]
  assert said(variances=bad) == ["explained_variance"]
  assert said(variances=bad[:4]) == []
  worse = [(10, -1.5), (20, -1.4)]  # logged at every tenth step
  assert said(variances=worse) == ["explained_variance"]
  assert said(variances=worse[:1]) == []
  early = [(step, -1.5) for step in range(1, 10)]
  assert said(variances=early) == []
  assert said(variances=[*bad, *((s, 0.3) for s in range(16, 21))]) == []


def test_a_run_without_an_evaluation_or_numbers():
  assert diagnostics.of([]) == []
  assert diagnostics.of([{"step": 0} | evaluation(ANCHOR)], 512) == []
  assert said(kl="nan", length="nan", repetition="inf") == ["repetition"]


def judged(*evaluations):
  """Kinds of what is said of (reward, win rate, low, high) in their order."""
  names = ("reward", "win_rate", "win_rate_low", "win_rate_high")
  rows = [
    {"step": 10 * i}
    | evaluation(ANCHOR | dict(zip(names, values, strict=True)))
    for i, values in enumerate(evaluations)
  ]
  return diagnostics.of(rows, 128)


START = (0.0, 0.5, 0.5, 0.5)


def test_a_judge_that_prefers_the_anchor_while_the_reward_rises():
  (found,) = judged(START, (1.0, 0.3, 0.22, 0.38))
  assert found.kind == "win_rate"
  for text in ("50.0% to 30.0%", "from 0 to 1", "--config.best=judge"):
    assert text in found.text
  assert judged(START, (-1.0, 0.3, 0.22, 0.38)) == []  # the reward fell too
  assert judged(START, (1.0, 0.44, 0.36, 0.52)) == []  # the noise of 128 pairs
  assert judged(START, (1.0, 0.46, 0.44, 0.49)) == []  # four points
  assert judged(START, (1.0, 0.7, 0.62, 0.78)) == []


def test_a_judge_that_liked_an_earlier_checkpoint_better():
  peak = (1.0, 0.75, 0.68, 0.82)
  (found,) = judged(START, peak, (2.0, 0.55, 0.47, 0.63))
  assert "75.0% to 55.0%" in found.text and "from 1 to 2" in found.text
  # The noise of two times 128 pairs; a reward that is below that of the peak.
  assert judged(START, peak, (2.0, 0.65, 0.57, 0.73)) == []
  assert judged(START, peak, (0.9, 0.55, 0.47, 0.63)) == []
  # An evaluation that nobody has judged says nothing.
  assert judged(START, peak, (2.0, "nan", "nan", "nan")) == []
  nobody = [{"step": 0} | evaluation(ANCHOR), {"step": 1} | evaluation(ANCHOR)]
  assert diagnostics.of(nobody, 128) == []


def test_noise_alone_does_not_warn():
  """Twenty evaluations of a policy as good as the anchor, the reward rising."""
  draws = np.random.default_rng(0)
  told = 0
  for _ in range(200):
    rates = draws.binomial(128, 0.5, size=20) / 128
    half = 1.96 * np.sqrt(rates * (1 - rates) / 128)
    rows = zip(range(20), rates, rates - half, rates + half, strict=True)
    told += bool(judged(START, *rows))
  assert told < 10  # of 200 runs, at the last of 20; prompts drawn anew
