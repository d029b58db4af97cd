"""The soak sees what changes, and a short one sees nothing."""

import types

import pytest

from benchmarks import soak
from perl_jax import files


def judged(tmp_path, *, memory=None, compiled=(), kl=0.0, grows=0.0):
  """100 iterations, an evaluation after each tenth; one a second."""
  rows = []
  for step in range(1, 101):
    difference = 1e-6 * (1 + grows * step / 100)
    rows.append({"step": step, "rollout/sampler_difference": difference})
    if step % 10 == 0:
      rows.append({"step": step, "validation/kl": kl if step == 50 else 0.0})
  files.write_jsonl(tmp_path / "metrics.jsonl", rows)
  recorder = types.SimpleNamespace(
    memory=[(t, (memory or (lambda t: 1e8))(t)) for t in range(101)],
    compiled=list(compiled),
  )
  times = [(t, t + t // 10) for t in range(101)]
  return soak.judged(tmp_path, recorder, times, 100)


def test_a_run_that_stays_as_it_was(tmp_path):
  """What happens in the warm-up does not count."""
  found = judged(
    tmp_path, memory=lambda t: min(1e8, 5e7 + 1e7 * t), compiled=(1, 9.5)
  )
  assert found["wrong"] == [] and found["evaluations"] == 10


@pytest.mark.parametrize(
  "changes, wrong",
  [
    ({"kl": 1e-9}, "kl"),
    ({"memory": lambda t: 1e8 * (1 + 2e-4 * t)}, "memory_drift"),
    ({"compiled": (70.0,)}, "compilations"),
    ({"grows": 0.5}, "sampler_difference"),
  ],
)
def test_what_changes_is_seen(tmp_path, changes, wrong):
  assert judged(tmp_path, **changes)["wrong"] == [wrong]


@pytest.mark.nightly
def test_thirty_iterations(tmp_path):
  """Memory is left out: so early, allocators still grow."""
  found = soak.run(tmp_path, 30, 30)
  assert found["kl"] == 0.0 and found["evaluations"] == 31
  assert set(found["wrong"]) <= {"memory_drift"}
