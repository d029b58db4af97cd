"""Output that nobody takes any more does not end a run, nor change its end."""

import os
import subprocess
import sys

import pytest

COMMAND = """
import sys
from perl_jax import starting
starting.begin()
from absl import logging
from perl_jax.reporting import conversations, phases, previews, terminal

logging.set_verbosity(logging.INFO)
logging.info("a line of the log")
print("a line of a reward function" * 9999)
shown = terminal.Progress("sft", 2, plain_seconds=0)
for step in range(1, 3):
  shown.update(step, {"loss": 1.0})
  print(step)
shown.stop(finished=True)
previews.show([[("prompt", "a", False)]])
conversations.show([{"prompt": "a", "anchor": "b", "policy": "c"}])
terminal.achieved_table({"x": 1.0}, {"report": "r"}, results={})
print("the last", end="")
with open(sys.argv[1], "w") as reached:
  reached.write("the end")
STATUS
"""
ENDS = {0: "", 75: "starting.leave_last(75)\nsys.exit(75)", 1: "sys.exit('so')"}


@pytest.fixture
def closed():
  """A pipe whose reader has gone."""
  read, write = os.pipe()
  os.close(read)
  yield write
  os.close(write)


@pytest.fixture
def full():
  """A disk without room."""
  if not os.path.exists("/dev/full"):
    pytest.skip("this system has no /dev/full")
  with open("/dev/full", "wb") as file:
    yield file.fileno()


def ended(tmp_path, status=0, **streams):
  """Runs `COMMAND` to its end; returns what it says on standard error."""
  done = subprocess.run(
    [
      *(sys.executable, "-c", COMMAND.replace("STATUS", ENDS[status])),
      tmp_path / "reached",
    ],
    text=True,
    timeout=120,
    **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
  )
  assert done.returncode == status, done.stderr
  assert (tmp_path / "reached").read_text() == "the end"
  return done


@pytest.mark.parametrize("status", ENDS)
@pytest.mark.parametrize("output", ["closed", "full"])
def test_a_run_goes_on_without_its_output(request, tmp_path, output, status):
  out = request.getfixturevalue(output)
  said = ended(tmp_path, status, stdout=out).stderr
  assert said.count("The output cannot be written any more") == 1
  assert "Exception ignored" not in said and "Traceback" not in said
  reason = {"closed": "Broken pipe", "full": "No space left on device"}
  assert f"({reason[output]})" in said


@pytest.mark.parametrize("output", ["closed", "full"])
def test_a_run_goes_on_without_its_log(request, tmp_path, output):
  out = request.getfixturevalue(output)
  printed = ended(tmp_path, stderr=out).stdout
  assert printed.endswith("the last") and "sft  2/2" in printed


def test_a_run_goes_on_without_both(tmp_path, closed):
  """As `2>&1 | tee log` is left by a Ctrl-C."""
  ended(tmp_path, 75, stdout=closed, stderr=closed)


def test_a_run_that_is_started_without_streams(tmp_path):
  """As `>&-` does: the next file would be what others print to."""
  command = COMMAND.replace("STATUS", "")
  arguments = [sys.executable, "-c", command, tmp_path / "reached"]
  done = subprocess.run(
    ["sh", "-c", '"$@" >&- 2>&-', "sh", *arguments], timeout=120
  )
  assert done.returncode == 0
  assert (tmp_path / "reached").read_text() == "the end"


def test_what_is_read_is_as_it_was(tmp_path):
  done = ended(tmp_path)
  assert done.stdout.startswith("a line of a reward function")
  lines = done.stdout.splitlines()
  # Rich and Python print in their order.
  assert lines.index("1") < lines.index("2") == lines.index("1") + 2
  assert done.stderr.count("a line of the log") == 1
  assert "The output" not in done.stderr


def test_streams_of_somebody_else_are_left_alone(tmp_path):
  command = (
    "import io, sys; sys.stdout = mine = io.StringIO(); from perl_jax import"
    " streams; streams.keep(); print('to me'); assert sys.stdout is mine"
  )
  subprocess.run([sys.executable, "-c", command], check=True, timeout=60)
