"""A process that fails or dies ends the run; started again, it goes on."""

import shutil
import socket

import pytest

from perl_jax import tasks
from tests.hosts import group as group_lib
from tests.hosts.group import assert_same_lines
from tests.tasks import tiny

pytestmark = pytest.mark.slow

LONG = {"steps": 40, "eval_every": 10, "eval__rows": 0}


@pytest.fixture
def start(tmp_path, cache):
  """Returns `start(arguments, **options)`: two processes that run."""
  made = []

  def start(arguments, **options):
    directory = tmp_path / f"logs{len(made)}"
    made.append(directory)
    options = {"environment": {}, "count": 2} | options
    options["environment"] = cache | options["environment"]
    return group_lib.Group(arguments, directory=directory, **options)

  return start


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  with group_lib.Group(
    group_lib.arguments("sft", workdir, **LONG),
    count=2,
    directory=workdir.parent,
    environment=cache,
  ) as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  return workdir


@pytest.mark.nightly
def test_a_killed_process_ends_the_other_and_a_restart_goes_on(
  tmp_path, start, uninterrupted
):
  """First the second is killed, then the first, then they may finish."""
  workdir = tmp_path / "run"
  command = group_lib.arguments("sft", workdir, **LONG)
  for killed, step in ((1, 11), (0, 21)):
    with start(command) as group:
      # The checkpoint of step 10 or 20 is there when the next step has a line.
      group.wait_for_line(workdir / "metrics.jsonl", step)
      group.kill(killed)
      statuses = group.wait(60)
    said = group.logs[1 - killed]
    assert statuses[1 - killed] != 0
    if killed:
      assert "error: another process of the run has ended" in said, said
      assert "Run the same command again" in said
    else:
      # With process 0 the coordinator is gone, and JAX itself may say so.
      assert "another process" in said or "another task died" in said, said
    assert not (workdir / "summary.json").exists()
  with start(command) as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  assert "Resuming after step" in group.logs[0]
  assert tiny.lines(workdir) == tiny.lines(uninterrupted)


def test_one_that_is_told_to_stop_makes_all_save_the_same_step(
  tmp_path, start, uninterrupted
):
  workdir = tmp_path / "run"
  command = group_lib.arguments("sft", workdir, **LONG)
  for told, step in ((1, 3), (0, 13)):
    with start(command) as group:
      group.wait_for_line(workdir / "metrics.jsonl", step)
      group.processes[told].terminate()
      assert group.wait(120) == [75, 75], "\n".join(group.logs)
    first, second = group.logs
    assert "Stopped by SIGTERM after step" in first, first
    assert "Stopped" not in second and "Traceback" not in first + second
    # All steps that were made are saved, those between evaluations too.
    last = max(row["step"] for row in tiny.lines(workdir))
    assert max(tiny.kept(workdir)) == last
    assert not (workdir / "lock.json").exists()
  with start(command) as group:
    assert group.wait() == [0, 0], "\n".join(group.logs)
  assert tiny.lines(workdir) == tiny.lines(uninterrupted)


def test_two_processes_are_as_one(tmp_path, uninterrupted):
  tasks.run(tiny.config("sft", mesh__data=2, **LONG), tmp_path / "alone")
  assert_same_lines(
    tiny.lines(uninterrupted),
    tiny.lines(tmp_path / "alone"),
    rtol=1e-5,
    atol=1e-6,
  )


def test_what_is_wrong_is_said_once(tmp_path, start, uninterrupted):
  """All see that the workdir belongs to another config; process 0 says so."""
  shutil.copytree(uninterrupted, tmp_path / "run")
  before = tiny.tree(tmp_path / "run")
  command = group_lib.arguments("sft", tmp_path / "run", **LONG, seed=3)
  with start(command) as group:
    assert group.wait(120) == [1, 1]
  first, second = group.logs
  assert "error: " in first and "config.seed: 0 -> 3" in first
  assert "Traceback" not in first + second
  assert "error" not in second, second
  assert tiny.tree(tmp_path / "run") == before


def test_an_error_of_one_process_is_said_by_the_first(tmp_path, start, sft_run):
  """A reward function that fails on one host only."""
  command = group_lib.arguments(
    "rl", tmp_path / "run", policy__init=str(sft_run),
    reward__fn="tests.hosts.rewards:fails_on_second",
  )  # fmt: skip
  flagged = {"PERL_JAX_FAILS": "--process_id=1"}
  with start(command, environment=flagged) as group:
    assert group.wait(120) == [1, 1]
  first, second = group.logs
  assert "error: process 1 of 2: config.reward.fn=" in first, first
  assert "no judgement here" in first
  assert not (tmp_path / "run").exists()
  assert "error" not in second, second


@pytest.mark.nightly
def test_all_save_where_one_has_no_reward(tmp_path, start, sft_run):
  """Tried twice, the anchor judged, one step made; the next fails on one."""
  command = group_lib.arguments(
    "rl", tmp_path / "run", policy__init=str(sft_run), eval_every=4,
    reward__fn="tests.hosts.rewards:fails_later", estimator="rloo",
    samples_per_prompt=2,
  )  # fmt: skip
  flagged = {"PERL_JAX_FAILS": "--process_id=1"}
  with start(command, environment=flagged) as group:
    assert group.wait() == [1, 1]
  first, second = group.logs
  assert "error: process 1 of 2: config.reward.fn=" in first, first
  assert "error" not in second, second
  assert tiny.kept(tmp_path / "run") == [1]


def second_of_two(number, port):
  del number
  return [
    f"--coordinator_address=127.0.0.1:{port}",
    *("--num_processes=2", "--process_id=1"),
  ]


def test_a_process_that_nobody_joins_may_be_told_to_stop(tmp_path, start):
  command = group_lib.arguments("sft", tmp_path / "run")
  with socket.create_server(("127.0.0.1", 0)) as server:
    server.settimeout(group_lib.DEADLINE)
    port = server.getsockname()[1]

    def waiting(number, _):
      return second_of_two(number, port)

    with start(command, count=1, flags=waiting) as group:
      server.accept()[0].close()  # it asks for the first one
      group.processes[0].terminate()
      assert group.wait(60) == [75]
  assert "Stopped by SIGTERM outside a run" in group.logs[0], group.logs[0]


def test_a_process_that_nobody_joins_gives_up(tmp_path, start):
  command = [*group_lib.arguments("sft", tmp_path / "run"), "--join_seconds=3"]
  with start(command, count=1, flags=second_of_two) as group:
    assert group.wait(120) == [1]
  assert "could not be joined within 3 s" in group.logs[0], group.logs[0]
  assert not (tmp_path / "run").exists()
