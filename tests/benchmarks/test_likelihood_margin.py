"""How often a model itself prefers the chosen reply."""

import math

import numpy as np
import pytest

from benchmarks import likelihood_margin, soak
from tests.tasks import tiny


def test_by_the_sum_and_by_the_mean():
  """A longer reply is less likely as a whole, and more so by the token."""
  sums = np.array([[-6.0, -1.0, -9.0], [-4.0, -2.0, -9.0]])
  lengths = np.array([[3, 1, 9], [1, 1, 3]])
  found = likelihood_margin.shares(sums, lengths)
  assert found["sum.accuracy"] == pytest.approx((0 + 1 + 0.5) / 3)
  assert found["mean.accuracy"] == pytest.approx((1 + 1 + 1) / 3)
  assert found["n"] == 3
  assert found["sum.accuracy_low"] < 0.5 < found["sum.accuracy_high"]


@pytest.mark.nightly
def test_a_model_is_measured(tmp_path):
  """What knows nothing finds a token as likely as another: length decides."""
  tiny.run(tmp_path / "sft", "sft", optimizer__learning_rate=0.0)
  fields = soak.SMALL | {
    "policy.init": str(tmp_path / "sft"),
    "tuning": "lora",
    "eval.rows": 0,
    "steps": 1,
  }
  fields = {name: fields[name] for name in fields if name != "log_every"}
  found = likelihood_margin.measure("coffee_bar", fields)
  assert found["n"] == 8
  assert not math.isnan(found["mean.accuracy"])
