"""Eight host devices on the CPU for every test, and what tests share.

The variables have to be set before jax is imported anywhere, so this file does
it first of all.
"""

import os
import sys

if "jax" in sys.modules:
  raise RuntimeError(
    "jax was imported before tests/conftest.py could give it 8 host devices;"
    " find the pytest plugin that imports it."
  )
os.environ["JAX_PLATFORMS"] = "cpu"
DEVICES = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get(
  "XLA_FLAGS", ""
):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER and hasattr(os, "sched_setaffinity"):
  # A core for each worker: XLA's threads of several would be in each other's
  # way, and take longer together than one after the other.
  _CORES = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {_CORES[int(_WORKER[2:]) % len(_CORES)]})

import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def rng() -> np.random.Generator:
  """Random numbers that are the same in every run and for every test."""
  return np.random.default_rng(0)
