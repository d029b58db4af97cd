"""Where the time of a stage and of its steps went."""

import html
import math
import re

from perl_jax.reporting import costs


def words(text):
  return " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())


# A line for every fourth step: `seconds/step` is a mean over four.
ROWS = [
  {"step": 4, "seconds/step": 2.0, "seconds/compile": 30.0},
  {"step": 4, "seconds/evaluate": 3.0},
  {"step": 8, "seconds/step": 2.0, "rate/tokens": 512.0, "rate/mfu": 0.25},
  {"step": 8, "seconds/evaluate": 4.0},
]


def test_a_stage_is_split_into_steps_compilation_evaluation_and_the_rest():
  text = words(costs.breakdown("Title", ROWS, 63.0))
  assert text == (
    "Title The whole stage: compilation 30.0 s training steps 16.0 s other"
    " 10.0 s evaluation 7.00 s A training step, median: 2.00 s, 512.0 tokens/s,"
    " 25.0% model FLOPs utilisation"
  )
  assert "other" not in costs.breakdown("Title", ROWS, math.nan)


def test_the_shares_of_a_bar_are_those_of_the_time():
  text = costs.breakdown("Title", ROWS, 80.0)
  shares = [float(x) for x in re.findall(r"width: ([\d.]*)%", text)]
  assert shares == [37.5, 33.75, 20.0, 8.75]


def test_phases_are_those_of_a_training_step():
  rows = [
    {"step": i, "seconds/step": 2.0, "seconds/learn": 0.5} for i in range(9)
  ]
  rows[0] |= {"seconds/learn": 90.0, "seconds/compile": 89.5}
  rows.append({"step": 8, "seconds/evaluate": 7.0})
  text = words(costs.breakdown("Title", rows, math.nan))
  assert text.endswith("median: 2.00 s other 1.50 s update 500 ms")


def test_without_times_there_is_nothing():
  assert costs.breakdown("Title", [{"step": 1, "train/loss": 1.0}], 9.0) == ""
  assert costs.totals({"rl.kl": 1.0}, {}) == ""


def test_totals_name_each_stage_and_leave_out_the_sum():
  summary = {"seconds.rl": 90.0, "memory.rl": 2**30, "seconds.new": 30.0}
  text = costs.totals(summary | {"seconds.total": 120.0}, {"rl": "Title"})
  assert words(text) == "Time Peak memory Title 1:30 1 GiB new 30.0 s n/a"
