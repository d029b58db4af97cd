"""What judges said, on the page."""

import html

from perl_jax.reporting import headline, verdicts
from tests.reporting import runs

SUMMARY = {
  "judge.n": 40,
  "judge.by.gold.win_rate": 0.5,
  "judge.by.gold.tie_rate": 0.25,
  "judge.by.gold.loss_rate": 0.25,
  "judge.by.gold.win_rate_ties_half": 0.625,
  "judge.by.gold.win_rate_ties_half_low": 0.5125,
  "judge.by.gold.win_rate_ties_half_high": 0.7375,
  "judge.by.gold.consistency": 1.0,
  "judge.by.gold.refused": 0,
  "judge.by.gold.unparsable": 0,
  "judge.by.gold.cut": 0,
  "judge.by.model.win_rate": "nan",
  "judge.by.model.win_rate_ties_half": "nan",
  "judge.by.model.win_rate_ties_half_low": "nan",
  "judge.by.model.refused": 3,
  "judge.by.model.unparsable": 70,
  "judge.by.model.cut": 7,
  "judge.by.gold_and_model.agreement": 0.75,
  "judge.by.gold_and_model.kappa": 0.4375,
  "judge.by.gold_and_model.judged": 36,
}


def line(number, outcome="win"):
  return {
    "id": f"row {number}",
    "prompt": f"user: <b>say {number}</b>",
    "reference": None,
    "policy": f"mine {number} & more",
    "against": f"theirs {number}",
    "against_is": "anchor",
    "judges": {
      "gold": {
        "outcome": outcome, "policy_first": "policy",
        "policy_last": "policy", "reasons": ["policy 1, other 0"] * 2,
      },
      "model": {
        "outcome": None, "policy_first": "refused",
        "policy_last": "unparsable", "reasons": ["<script>", "Both & none"],
      },
    },
  }  # fmt: skip


def section(rows, summary=SUMMARY):
  text = verdicts.verdicts_html(rows, summary, "judge")
  runs.Checker(text)
  return text


def test_rates_with_intervals_and_what_was_not_said():
  text = html.unescape(section([line(i) for i in range(40)]))
  assert "40 held-out prompts" in text and "of the anchor" in text
  for part in ("50.0%", "25.0%", "62.5%", "51.2% to 73.8%", ">80<", "n/a"):
    assert part in text, part
  assert "gold and model" in text and "75.0%" in text and "0.438" in text
  assert "same outcome" in text


def test_pairs_with_what_judges_said_of_them():
  text = section([line(0), line(1, "loss"), line(2, "tie"), line(3)])
  assert "mine 0 &amp; more" in text and "<script>" not in text
  assert "&lt;script&gt;" in text and "<b>say" not in text
  assert text.count("<h4>Policy</h4>") == text.count("<h4>Anchor</h4>") == 4
  for outcome in ("win", "loss", "tie", "no verdict"):
    assert f">{outcome}</span>" in text, outcome
  assert "1 more pairs" in text
  assert text.count("policy 1, other 0") == 4  # not twice where it is the same


def test_without_verdicts_there_is_no_section():
  assert section([]) == section([{"prompt": "x"}]) == ""
  assert "n/a" in section([line(0)], {})  # numbers may be missing


def test_the_page_and_the_table_at_the_end():
  stage = runs.stage("judge", verdicts=[line(0)])
  text = runs.render(runs.stages(judge=stage), SUMMARY)
  runs.Checker(text)
  assert "What judges say" in runs.headings(text)
  results = {"judge": "Judged policy"}
  (first, second) = headline.rows(SUMMARY, results)
  assert first.label == "Judged policy: win rate, a tie as half, by gold"
  assert first.after == "62.5% (51.2% to 73.8%)"
  assert second.after.startswith("n/a")
  assert headline.rows(SUMMARY, {"rl": "Policy"}) == []
