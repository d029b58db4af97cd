"""What is wrong for all, or for process 0 alone, ends both with one line."""

import pytest

from tests.archives import read_arrays
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
    found = read_arrays(workdir / "nonfinite" / name)
    assert found["batch/tokens"].shape[0] == 4  # its own half of the rows
  assert not (workdir / "lock.json").exists()
  assert tiny.kept(workdir) == []


def test_a_disk_that_is_full_for_process_0_ends_both(tmp_path, cache):
  """It alone is refused the first checkpoint, while the other has written."""
  resource = pytest.importorskip("resource", reason="needs limits of POSIX")
  if not hasattr(resource, "prlimit"):
    pytest.skip("needs to limit another process, as Linux can")
  workdir = tmp_path / "run"
  command = group_lib.arguments("sft", workdir, eval__rows=0)
  with group_lib.Group(
    [*command, "--compilation_cache=off"],
    count=2,
    directory=tmp_path,
    environment={},
  ) as group:
    limit = (30_000, 30_000)
    resource.prlimit(group.processes[0].pid, resource.RLIMIT_FSIZE, limit)
    assert group.wait() == [1, 1], "\n".join(group.logs)
  (line,), none = errors(group)
  assert not none and "Traceback" not in group.logs[1]
  assert line.startswith("error: the checkpoint of step 2 cannot be written")
  assert "File too large" in line
  assert not (workdir / "summary.json").exists()
  assert tiny.kept(workdir) == []
  # With room enough it goes on, from the start.
  with group_lib.Group(
    command, count=2, directory=tmp_path / "again", environment=cache
  ) as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  assert max(tiny.kept(workdir)) == 4
