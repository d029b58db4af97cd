"""What is wrong for all ends all with one line."""

import numpy as np
import pytest

from tests.hosts import group as group_lib
from tests.tasks import tiny

pytestmark = pytest.mark.slow


def errors(group):
  return [
    [line for line in log.splitlines() if line.startswith("error: ")]
    for log in group.logs
  ]


def test_a_number_that_is_not_finite_ends_both_and_each_keeps_its_batch(
  tmp_path, cache
):
  """An update that is too large to be squared, in the first step."""
  workdir = tmp_path / "run"
  command = group_lib.arguments(
    "sft", workdir, eval__rows=0, optimizer__learning_rate=1e30,
    optimizer__warmup_steps=0, optimizer__schedule="constant",
  )  # fmt: skip
  with group_lib.Group(
    command, count=2, directory=tmp_path, environment=cache
  ) as group:
    assert group.wait() == [1, 1], "\n".join(group.logs)
  (line,), none = errors(group)
  assert not none and "Traceback" not in "".join(group.logs)
  assert line.startswith("error: Step 1: the update of ")
  assert "The same command goes on from the start with a lower" in line
  kept = sorted(path.name for path in (workdir / "nonfinite").iterdir())
  assert kept == [
    "step-1-process-0.npz", "step-1-process-1.npz", "stop.json",
  ]  # fmt: skip
  for name in kept[:2]:
    found = dict(np.load(workdir / "nonfinite" / name))
    assert found["batch/tokens"].shape[0] == 4  # its own half of the rows
  assert not (workdir / "lock.json").exists()
  assert tiny.kept(workdir) == []
