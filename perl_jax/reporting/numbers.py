"""Numbers as people read them: values of metrics, durations, sizes."""

import math

from perl_jax.reporting import vocabulary

MISSING = "n/a"


def number(value: object) -> float:
  """The value as a float; nan for what is no number ("inf" is one)."""
  if isinstance(value, bool) or value is None:
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def show(key: str, value: object) -> str:
  """A value of a metric, in percent if it is a share; only an exact 0 is "0".

  Args:
    key: Key of the metric; see `vocabulary.row_of`.
    value: A number, or what JSON has in place of one.
  """
  x, row = number(value), vocabulary.row_of(key)
  if not math.isfinite(x):
    return MISSING if math.isnan(x) else str(x)
  if row.percent:
    digits = 3 if 0 < abs(x) < 0.001 else 2 if 0 < abs(x) < 0.01 else 1
    return f"{100 * x:.{digits}f}%"
  if row.unit == "tokens":
    return f"{x:.1f}"
  if x == 0 or isinstance(value, int):
    return f"{x:,.0f}"
  if abs(x) >= 100:
    return f"{x:,.0f}" if abs(x) >= 10_000 else f"{x:,.1f}"
  return f"{x:.3f}" if abs(x) >= 0.01 else f"{x:.3g}"


def duration(seconds: object) -> str:
  """3723.4 -> 1:02:03; below a minute 12.3 s, 1.23 s, 123 ms."""
  x = number(seconds)
  if not math.isfinite(x):
    return MISSING
  if 0 < x < 0.9995:
    return f"{1000 * x:.3g} ms"
  if x < 59.95:
    return f"{x:.{2 if x < 9.995 else 1}f} s"
  minutes, rest = divmod(round(x), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: object) -> str:
  """Bytes in binary units, with three digits: 1536 -> 1.5 KiB."""
  x = number(count)
  if not math.isfinite(x):
    return MISSING
  for unit in ("B", "KiB", "MiB", "GiB"):
    if abs(x) < 1023.5:
      break
    x, unit = x / 1024, "TiB"
  whole = unit == "B" or abs(x) >= 99.95
  return f"{x:.0f} {unit}" if whole else f"{x:.3g} {unit}"
