"""Several processes of `python -m perl_jax.main` on this machine, as one run.

Each has one CPU device; they find each other at a port of 127.0.0.1 and talk
through gloo, as hosts without an accelerator would.
"""

import contextlib
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from perl_jax import files
from tests.tasks import tiny

ROOT = pathlib.Path(__file__).parents[2]

ONE_DEVICE = "--xla_force_host_platform_device_count=1"
DEADLINE = 400  # seconds; for a slow machine, nothing here waits that long


class Group:
  """Processes of one run, started together; use it in a `with` block.

  Attributes:
    processes: In their order.
    logs: What each has written, standard output and error together.
  """

  def __init__(
    self,
    arguments,
    *,
    count,
    directory,
    environment,
    flags=None,
    own=lambda number: {},
  ):
    """Starts them.

    Args:
      arguments: Command line that all get.
      count: How many there are.
      directory: For logs.
      environment: Added to this process's.
      flags: `(process id, port) -> arguments` in place of explicit addresses.
      own: `process id -> environment` of that process alone.
    """
    port = free_port()
    flags = flags or (
      lambda number, port: [
        f"--coordinator_address=127.0.0.1:{port}",
        f"--num_processes={count}",
        f"--process_id={number}",
      ]
    )
    environment = (
      os.environ
      | {
        "JAX_PLATFORMS": "cpu",
        # The last of two counts.
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {ONE_DEVICE}",
        "PYTHONUNBUFFERED": "1",
      }
      | environment
    )
    directory.mkdir(parents=True, exist_ok=True)
    self._paths = [directory / f"process{i}.log" for i in range(count)]
    self.processes = []
    for number, path in enumerate(self._paths):
      with path.open("wb") as log:
        self.processes.append(
          subprocess.Popen(
            [
              sys.executable,
              "-Werror",
              *("-m", "perl_jax.main"),
              *arguments,
              *flags(number, port),
            ],
            cwd=ROOT,
            env=environment | own(number),
            stdout=log,
            stderr=subprocess.STDOUT,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      if process.poll() is None:
        process.kill()
      process.wait()

  @property
  def logs(self):
    return [path.read_text(errors="replace") for path in self._paths]

  def wait(self, seconds=DEADLINE):
    """Exit statuses of all; fails with the logs if one is not done in time."""
    end = time.monotonic() + seconds
    for process in self.processes:
      try:
        process.wait(max(0.0, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        shown = "\n----\n".join(log[-3000:] for log in self.logs)
        raise AssertionError(f"not done in {seconds} s:\n{shown}") from None
    return [process.returncode for process in self.processes]

  def kill(self, number):
    """Ends a process as a lost host would: without a word."""
    self.processes[number].send_signal(signal.SIGKILL)
    self.processes[number].wait()

  def wait_for_line(self, path, step):
    """Waits until metrics.jsonl has a line of the step."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
      with contextlib.suppress(FileNotFoundError):
        rows = files.read_jsonl(path, torn_end=True)
        if any(row["step"] >= step for row in rows):
          return
      for process in self.processes:
        if process.poll() is not None:
          shown = "\n----\n".join(self.logs)
          raise AssertionError(f"ended before step {step}:\n{shown}")
      with contextlib.suppress(subprocess.TimeoutExpired):
        self.processes[0].wait(0.05)
    raise AssertionError(f"no line of step {step} in {path}")


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def arguments(task, workdir, **overrides):
  """The command line of a tiny stage on all devices."""
  fields = tiny.fields(task) | {"mesh.data": -1} | tiny.dotted(overrides)
  return [
    f"--config=configs/{task}.py",
    *(f"--config.{name}={value}" for name, value in fields.items()),
    f"--workdir={workdir}",
  ]


def assert_same_lines(found, expected, *, rtol, atol):
  """Rows of metrics.jsonl: the same names, and the same numbers."""
  assert len(found) == len(expected) > 0
  for mine, theirs in zip(found, expected):
    assert mine.keys() == theirs.keys()
    off = {
      name: (mine[name], theirs[name])
      for name in mine
      if not math.isclose(
        float(mine[name]), float(theirs[name]), rel_tol=rtol, abs_tol=atol
      )
    }
    assert not off, (mine["step"], off)


def sides(module, *arguments):
  """What two processes of a module of tests.hosts have printed last, as JSON.

  Each is given a port, its number, and the arguments.
  """
  port = free_port()
  started = [
    subprocess.Popen(
      [sys.executable, "-m", f"tests.hosts.{module}", str(port), str(number)]
      + [str(argument) for argument in arguments],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE},
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  found = []
  try:
    for process in started:
      out, _ = process.communicate(timeout=DEADLINE)
      assert process.returncode == 0
      found.append(json.loads(out.splitlines()[-1]))
  finally:
    for process in started:
      process.kill()
  return found
