"""The benchmark of quantised bases at toy size, and its error by hand."""

import numpy as np
import pytest

from benchmarks import quantized_base
from perl_jax.models import quantization
from tests.tasks import tiny


def test_logit_error_leaves_out_what_softmax_does_not_see():
  rng = np.random.default_rng(0)
  exact = rng.normal(size=(50, 7)) * 3
  shifted = exact + rng.normal(size=(50, 1))
  found = quantized_base.logit_error(shifted, exact)
  assert found["logit_error"] == pytest.approx(0, abs=1e-12)
  worse = exact.copy()
  worse[3, 2] += 0.7
  found = quantized_base.logit_error(worse, exact)
  assert found["largest_logit_error"] == pytest.approx(0.7 * 6 / 7)
  squares = 0.49 * (1 - 1 / 7)
  centred = exact - exact.mean(axis=1, keepdims=True)
  expected = (squares / (centred**2).sum()) ** 0.5
  assert found["logit_error"] == pytest.approx(expected)


@pytest.mark.nightly
def test_toy_run(tmp_path):
  anchor = dict(tiny.fields("sft"))
  reward = dict(tiny.fields("reward"))
  found = quantized_base.measure(tmp_path, anchor, reward)
  assert list(found) == ["bfloat16", *quantization.QUANTIZED]
  errors = [row["logit_error"] for row in found.values()]
  assert 0 < errors[0] < errors[1] < errors[2] < 1
  sizes = [row["bytes"] for row in found.values()]
  assert sizes[0] > sizes[1] > sizes[2]
  for row in found.values():
    assert row["compiler_bytes"] == row["bytes"]
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
  table = quantized_base.table(found)
  assert f"{sizes[2]:,}" in table and "nf4" in table
