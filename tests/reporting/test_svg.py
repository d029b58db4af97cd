"""Curves as drawings: means, thinning, size."""

import numpy as np
import pytest

from perl_jax.reporting import svg


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
def test_running_mean_against_a_slow_loop(width):
  values = np.random.default_rng(0).normal(size=12)
  values[4] = np.nan
  expected = []
  for i in range(values.size):
    first = i - width // 2
    window = [
      values[j]
      for j in range(first, first + width)
      if 0 <= j < values.size and np.isfinite(values[j])
    ]
    expected.append(np.mean(window) if window else np.nan)
  got = svg.running_mean(values, width)
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_long_curve_is_thinned_without_losing_a_spike():
  values = np.ones(30_000)
  values[12_345] = 77.0
  x, y = svg.thin_out(np.arange(30_000), values)
  assert len(x) <= 800
  assert (x[y == 77.0]).tolist() == [12_345]
  line = svg.Line("loss", np.arange(30_000), values, "c1", "thin")
  assert len(svg.curves("loss", "Loss", "nats", [line]).svg) < 60_000
