"""Numbers as text."""

import math

import pytest

from perl_jax.reporting import numbers


@pytest.mark.parametrize(
  ("call", "value", "expected"),
  [
    (numbers.duration, 3723.4, "1:02:03"),
    (numbers.duration, 12.34, "12.3 s"),
    (numbers.duration, 1.234, "1.23 s"),
    (numbers.duration, 59.96, "1:00"),
    (numbers.duration, "nan", "n/a"),
    (numbers.duration, 0.1234, "123 ms"),
    (numbers.duration, 0.0123, "12.3 ms"),
    (numbers.duration, 0.99949, "999 ms"),
    (numbers.duration, 0.9996, "1.00 s"),
    (numbers.duration, 0, "0.00 s"),
    (numbers.size, 1023, "1023 B"),
    (numbers.size, 1.5 * 2**20, "1.5 MiB"),
    (numbers.size, 1023 * 2**20, "1023 MiB"),
    (numbers.size, 1023.9 * 2**20, "1 GiB"),
    (numbers.size, -2048, "-2 KiB"),
    (numbers.size, 2**45, "32 TiB"),
    (numbers.number, True, math.nan),
    (numbers.number, "inf", math.inf),
  ],
)
def test_formats(call, value, expected):
  assert call(value) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("rl.gold_after", 0.412, "41.2%"),
    ("reward.trainable_share", 0.0087, "0.87%"),
    ("rollout/clip_fraction", 0.00012, "0.012%"),
    ("rate/mfu", 0.431, "43.1%"),
    ("length", 12, "12.0"),
    ("kl", 0.0, "0"),
    ("kl", 1e-5, "1e-05"),
    ("kl", 5.25, "5.250"),
    ("kl", "nan", "n/a"),
    ("n", 12_000, "12,000"),
    ("never_seen", 123.45, "123.5"),
  ],
)
def test_values_of_metrics(key, value, expected):
  assert numbers.show(key, value) == expected
