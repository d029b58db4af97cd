"""What the benchmarks print in common: the machine, and how numbers look."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from perl_jax.planning import libtpu


def machine() -> dict[str, Any]:
  """The machine that the numbers are measured on, JSON-able."""
  libtpu.quiet(os.environ)
  device = jax.devices()[0]
  return {
    "device": f"{device.platform}: {device.device_kind}",
    "processor": processor(),
    "cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "load_at_start": os.getloadavg()[0],
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def processor(path: str = "/proc/cpuinfo") -> str:
  """The CPU's name from Linux, or else what Python knows of it."""
  if Path(path).exists():
    for line in Path(path).read_text().splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  return platform.processor() or platform.machine()


def in_line(values: Mapping[str, Any]) -> str:
  """Names and values in one line."""
  return ", ".join(f"{name} {value}" for name, value in values.items())


def mebibytes(count: int) -> str:
  """Bytes in MiB, three digits or more."""
  size = count / 2**20
  return f"{size:.3f}" if size < 1 else f"{size:.1f}"


def spread(median: float, values: Sequence[float]) -> str:
  """The median, with the least and the greatest."""
  return f"{median:.3f} ({min(values):.3f} to {max(values):.3f})"
