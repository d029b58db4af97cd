"""The rows of the results, and the sentence above them."""

from perl_jax.reporting import headline
from tests.reporting.runs import RESULTS

SUMMARY = {
  "rl.gold_before": 0.412,
  "rl.gold_after": 0.79,
  "rl.reward_before": 1.5,
  "rl.reward_after": 1.25,
  "rl.kl": 5.25,
  "rl.kl_at_step_0": 0.0,
  "reward.accuracy": 0.91,
  "reward.accuracy_low": 0.89,
  "reward.accuracy_high": 0.93,
  "seconds.total": 3723.0,
}


def test_headline_rows():
  rows = headline.rows(SUMMARY, RESULTS)
  assert rows[0] == (
    "Policy: gold success",
    "41.2%",
    "79.0%",
    "+37.8 points",
    True,
  )
  assert rows[1][1:] == ("1.500", "1.250", "-0.250", False)
  assert rows[2][1:] == ("0", "5.250", "+5.250", None)
  assert rows[3].after == "91.0% (89.0% to 93.0%)"
  assert rows[4] == ("Time", "", "1:02:03", "", None)
  assert headline.rows({"something": 1}, RESULTS) == []


def test_takeaway_tells_rise_from_fall():
  assert headline.takeaway(SUMMARY, RESULTS) == (
    "Gold success rose from 41.2% to 79.0%, at a KL of 5.25 nats to the anchor."
  )
  worse = {"rl.gold_before": 0.5, "rl.gold_after": 0.25}
  assert (
    headline.takeaway(worse, RESULTS)
    == "Gold success fell from 50.0% to 25.0%."
  )
  same = {"rl.gold_before": 0.5, "rl.gold_after": 0.5}
  assert headline.takeaway(same, RESULTS) == "Gold success stayed at 50.0%."
  assert headline.takeaway({"sft.gold": 1.0}, RESULTS) == ""


JUDGED = {
  "judge.by.my-judge.win_rate_ties_half": 0.613,
  "judge.by.my-judge.win_rate_ties_half_low": 0.535,
  "judge.by.my-judge.win_rate_ties_half_high": 0.688,
  "judge.by.nobody.win_rate_ties_half": float("nan"),
  "judge.policy.length": 51.0,
  "judge.anchor.length": 48.0,
  "judge.policy.kl": 1.25,
  "judge_reward.accuracy": 0.64,
}
JUDGING = {"judge_reward": "Other", "judge": "Judged"}


def test_takeaway_says_what_judges_say():
  said = headline.takeaway(SUMMARY | JUDGED, RESULTS | JUDGING)
  assert said == (
    "Gold success rose from 41.2% to 79.0%, at a KL of 5.25 nats to the anchor."
    " By my-judge it wins 61.3% (53.5% to 68.8%), a tie as half."
  )
  alone = headline.takeaway(JUDGED, RESULTS | JUDGING)
  assert alone == said.partition(". ")[2]


def test_the_name_of_a_judge_may_have_dots():
  """As those of models do."""
  key = "judge.by.model-4.1.win_rate_ties_half"
  (row,) = headline.rows({key: 0.5}, JUDGING)
  assert row.label.endswith("by model-4.1") and row.after == "50.0%"
  said = headline.takeaway({key: 0.5}, JUDGING)
  assert said == "By model-4.1 it wins 50.0%, a tie as half."


def test_a_judgement_repeats_nothing_of_the_policy_in_a_pipeline():
  def labels(summary):
    found = headline.rows(summary, RESULTS | JUDGING)
    return [row.label for row in found]

  length = "Judged: response length (tokens)"
  assert length in labels(JUDGED)
  found = labels(SUMMARY | JUDGED)
  assert length not in found and "Other: accuracy" in found
  assert "Judged: KL to the anchor (nats)" in found  # of its own prompts


def test_an_evaluation_does_not_repeat_the_reward_model():
  found = {"evaluate.reward_model.auroc": 0.75}
  assert [row.after for row in headline.rows(found, RESULTS)] == ["0.750"]
  found["reward.auroc"] = 0.5
  assert [row.after for row in headline.rows(found, RESULTS)] == ["0.500"]


def test_a_fall_is_an_improvement_where_lower_is_better():
  found = {"dpo.log_loss_before": 0.75, "dpo.log_loss_after": 0.5}
  (row,) = headline.rows(found, RESULTS)
  assert row == (
    "Policy (DPO): log loss (nats)", "0.750", "0.500", "-0.250", True,
  )  # fmt: skip


def test_stages_come_in_the_given_order_with_their_names():
  found = {
    f"{stage}.{name}": 0.5
    for stage in ("rl", "dpo")
    for name in ("length_before", "length_after", "gold_before", "gold_after")
  }
  rows = headline.rows(found, {"dpo": "First", "rl": "Second"})
  assert [row.label for row in rows] == [
    "First: gold success",
    "First: response length (tokens)",
    "Second: gold success",
    "Second: response length (tokens)",
  ]
  assert headline.rows(found, {}) == []


def test_a_judge_during_rl():
  """Its win rate has an interval, and comes before the reward."""
  summary = {
    "rl.reward_before": 0.0, "rl.reward_after": 1.0, "rl.kl": 2.5,
    "rl.win_rate_before": 0.5, "rl.win_rate_after": 0.62,
    "rl.win_rate_low_before": 0.5, "rl.win_rate_low_after": 0.55,
    "rl.win_rate_high_before": 0.5, "rl.win_rate_high_after": 0.7,
  }  # fmt: skip
  first, *rest = headline.rows(summary, {"rl": "Policy"})
  assert first == headline.Row(
    "Policy: win rate against the anchor, a tie as half",
    "50.0%", "62.0% (55.0% to 70.0%)", "+12.0 points", True,
  )  # fmt: skip
  assert [row.label for row in rest] == [
    "Policy: reward (score)", "Policy: KL to the anchor (nats)",
  ]  # fmt: skip
  assert headline.takeaway(summary, {"rl": "Policy"}) == (
    "Win rate against the anchor, a tie as half rose from 50.0% to 62.0%, at a"
    " KL of 2.5 nats to the anchor."
  )


def test_a_judge_without_a_verdict_has_no_interval():
  rate = "judge.by.endpoint.win_rate_ties_half"
  summary = {rate: "nan", f"{rate}_low": "nan", f"{rate}_high": "nan"}
  (row,) = headline.rows(summary, {"judge": "Judged policy"})
  assert row.after == "n/a"
