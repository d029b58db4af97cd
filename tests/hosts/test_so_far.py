"""Two processes that are killed go on with what they have answered."""

import signal

import pytest

from perl_jax import files
from tests.hosts import group as group_lib
from tests.tasks import tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def reward_run(tmp_path, sft_run):
  fields = {"mesh__data": 2, "eval__rows": 0, "steps": 2}
  tiny.run(tmp_path / "reward", "reward", reward__init=str(sft_run), **fields)
  return tmp_path / "reward"


def asked(path):
  """How many responses the processes of a run were asked about."""
  return sum(
    len(file.read_text().splitlines())
    for file in path.parent.glob(f"{path.name}.*")
  )


def test_two_processes_answer_the_rest(tmp_path, sft_run, reward_run, cache):
  """The second dies in the second of two batches, and the first ends."""
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  given = {
    "policy__init": str(sft_run),
    "reward__init": str(reward_run),
    "reward__fn": "tests.hosts.rewards:killed_later",
    "samples_per_prompt": 2,
    "unfinished": "keep",
    "eval__batch_size": 4,
  }

  def environment(name, **more):
    return {"PERL_JAX_SEEN": str(tmp_path / name)} | more

  def start(name, workdir=workdir, **more):
    command = group_lib.arguments("generate", workdir, **given)
    return group_lib.Group(
      ["--config=configs/generate.py:coffee_bar", *command[1:]],
      count=2,
      directory=tmp_path / f"logs_{name}",
      environment=cache | environment(name, **more),
    )

  # The function is tried twice before the first batch.
  with start("by_whole", whole) as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  with start("by_killed", PERL_JAX_KILLED_AT="4") as group:
    ended, killed = group.wait()
  assert killed == -signal.SIGKILL and ended not in (0, killed), group.logs[0]
  first, second = files.read_jsonl(workdir / "so_far.jsonl")
  assert "stands_on" in first and len(second["rows"]) == 4
  with start("by_rest") as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  assert asked(tmp_path / "by_whole") - asked(tmp_path / "by_rest") == 8
  for name in ("responses.jsonl", "best.jsonl", "pairs.jsonl"):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()
  assert not (workdir / "so_far.jsonl").exists()
