"""Two processes that are killed before their first step go on from there."""

import signal

import pytest

from tests.hosts import group as group_lib
from tests.hosts.test_so_far import asked
from tests.tasks import tiny

pytestmark = pytest.mark.slow


def test_two_processes_ask_about_the_rest(tmp_path, sft_run, cache):
  """The second dies in the second of two batches of the anchor's responses."""
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  given = {
    "policy__init": str(sft_run),
    "reward__fn": "tests.hosts.rewards:killed_later",
    "center_reward": True,
    "eval__batch_size": 4,
    "steps": 1,
  }

  def start(name, workdir=workdir, **more):
    return group_lib.Group(
      group_lib.arguments("rl", workdir, **given),
      count=2,
      directory=tmp_path / f"logs_{name}",
      environment=cache | {"PERL_JAX_SEEN": str(tmp_path / name)} | more,
    )

  # The function is tried twice before the first batch.
  with start("by_whole", whole) as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  with start("by_killed", PERL_JAX_KILLED_AT="4") as group:
    ended, killed = group.wait()
  assert killed == -signal.SIGKILL and ended not in (0, killed), group.logs[0]
  first, second = (workdir / "anchor.jsonl").read_bytes().splitlines()
  assert b"made_from" in first and b"responses" in second
  with start("by_rest") as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  assert asked(tmp_path / "by_whole") - asked(tmp_path / "by_rest") == 4
  names = "metrics.jsonl", "samples.jsonl"
  for name in names:
    assert tiny.lines(workdir, name) == tiny.lines(whole, name)
  kept = [(path / "anchor.jsonl").read_bytes() for path in (workdir, whole)]
  assert kept[0] == kept[1]
