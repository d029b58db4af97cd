"""Kills runs at random moments, and compares them with one that nobody killed.

  python -m benchmarks.kill_test --kills=100 --log=benchmarks/logs/kill_test.log
  python -m benchmarks.kill_test --kills=20 --signal=TERM
  python -m benchmarks.kill_test --kills=20 --processes=2 --runs=sft,rl

Each run is the tiny model for a few steps, started as a user would start it.
The process is killed while it starts, between steps and in rollouts, while a
checkpoint is written, when the summary is about to appear, and, of a pipeline,
while the report is written; it is started again until it ends by itself. What
it leaves has to be what the undisturbed run left, bit for bit: metrics, samples
and scores without times, summary, and every array of every checkpoint.

With SIGTERM a process has to end with status 75, and at most the step under way
may be lost. With two processes one of them is killed, and the other has to end.
Exits with 1 if anything differs.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import alike
from perl_jax import files
from tests.tasks import tiny

ROOT = Path(__file__).parents[1]
RUNS = ("sft", "reward", "rl", "dpo", "pipeline")
STEPS = {"steps": 6, "eval_every": 3, "save.every_steps": 1}
AIMS = ("start", "step", "checkpoint", "summary")
STOPPED, DEADLINE = 75, 300.0


def main() -> int:
  """Returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
  parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
  parser.add_argument("--runs", default=",".join(RUNS))
  parser.add_argument("--kills_of_a_run", type=int, default=4)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--directory", type=Path, default=None)
  parser.add_argument("--log", type=Path, default=None)
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")  # reads checkpoints, no more
  directory = options.directory or Path(tempfile.mkdtemp(prefix="kill_test-"))
  lines: list[str] = []

  def say(text: str) -> None:
    print(text, flush=True)
    lines.append(text + "\n")

  say("$ python -m benchmarks.kill_test " + " ".join(sys.argv[1:]))
  test = KillTest(
    directory,
    number=getattr(signal, f"SIG{options.signal}"),
    processes=options.processes,
    draw=random.Random(options.seed),
    say=say,
  )
  wrong = test.run(
    options.runs.split(","), options.kills, options.kills_of_a_run
  )
  say(
    f"{test.kills} of SIG{options.signal} in {test.victims} runs of"
    f" {options.runs}: " + (f"{wrong} runs differ" if wrong else "all alike")
  )
  if options.log:
    files.write_text(options.log, "".join(lines))
  return int(wrong > 0)


class KillTest:
  """Undisturbed runs, and others that are killed.

  Attributes:
    kills: Signals that have found a process alive.
    victims: Runs that were killed and have ended.
  """

  def __init__(
    self,
    directory: Path,
    *,
    number: int,
    processes: int,
    draw: random.Random,
    say: Callable[[str], None],
  ):
    self.kills = self.victims = 0
    self._directory, self._number = directory, number
    self._processes, self._draw, self._say = processes, draw, say
    self._seconds: dict[str, float] = {}

  def run(self, runs: Sequence[str], kills: int, most: int) -> int:
    """Kills runs in turn, and returns how many of them differ.

    Args:
      runs: Some of `RUNS`.
      kills: How often to kill in all.
      most: How often to kill one run.
    """
    wrong = 0
    for name in ("sft", "reward", *runs):  # others start from these two
      if not self._whole(name).exists():
        self._undisturbed(name)
    while self.kills < kills:
      for name in runs:
        if self.kills < kills:
          wrong += not self._victim(name, min(most, kills - self.kills))
    return wrong

  def _whole(self, name: str) -> Path:
    return self._directory / "whole" / name

  def _undisturbed(self, name: str) -> None:
    began = time.monotonic()
    with Processes(self._arguments(name, self._whole(name)), self) as started:
      started.wait(0)
    self._seconds[name] = time.monotonic() - began
    self._say(f"{name}: undisturbed in {self._seconds[name]:.1f} s")

  def _arguments(self, name: str, workdir: Path) -> list[str]:
    data = {"mesh.data": -1}
    if name == "pipeline":
      values = {
        f"{task}.{field}": value
        for task in ("sft", "reward", "rl", "evaluate")
        for field, value in (
          tiny.fields(task) | data | (STEPS if task != "evaluate" else {})
        ).items()
      }
      config = "quickstart"
    else:
      values, config = tiny.fields(name) | data | STEPS, name
      if name != "sft":
        role = "reward" if name == "reward" else "policy"
        values[f"{role}.init"] = self._whole("sft")
      if name == "rl":
        values["reward.init"] = self._whole("reward")
    return [
      f"--config={ROOT}/configs/{config}.py",
      *(f"--config.{field}={value}" for field, value in values.items()),
      f"--workdir={workdir}",
    ]

  def _victim(self, name: str, most: int) -> bool:
    """Kills a run so many times at most; whether it ends as it should."""
    self.victims += 1
    workdir = self._directory / f"{name}_{self.victims}"
    arguments, moments, left = self._arguments(name, workdir), [], most
    while True:
      with Processes(arguments, self) as started:
        aim = self._draw.choice(
          (*AIMS, "report") if _is_pipeline(name) else AIMS
        )
        hit = left > 0 and self._wait_for(aim, name, workdir, started)
        if not hit:
          started.wait(0)
          break
        self.kills, left = self.kills + 1, left - 1
        moments.append(aim)
        found = started.end(self._number)
        if found:
          self._say(f"{name} {self.victims}: after {aim}: {found}")
          return False
      if self._number == signal.SIGTERM and (lost := alike.lost_steps(workdir)):
        self._say(f"{name} {self.victims}: after {aim}: {lost}")
        return False
    found = alike.different(self._whole(name), workdir, self._number)
    how = ", ".join(moments) or "never"
    self._say(f"{name} {self.victims}: killed at {how}: {found or 'alike'}")
    if not found:
      shutil.rmtree(workdir)
    return not found

  def _wait_for(
    self, aim: str, name: str, workdir: Path, started: "Processes"
  ) -> bool:
    """Waits for a random moment; False if the run has ended before it."""
    seconds = self._seconds.get(name, 20.0)
    if aim == "start":
      return started.alive_after(self._draw.uniform(0, 0.7 * seconds))
    if _is_pipeline(name):
      if aim == "report":
        return started.alive_when(
          lambda: (workdir / "evaluate" / "summary.json").exists()
        ) and started.alive_after(self._draw.uniform(0, 0.5))
      workdir = workdir / self._draw.choice(("sft", "reward", "rl"))
    step = self._draw.randint(1, STEPS["steps"])
    if aim == "step":
      step = max(step, alike.made(workdir) + 1)
      reached = started.alive_when(lambda: alike.made(workdir) >= step)
      return reached and started.alive_after(self._draw.uniform(0, 0.5))
    if aim == "summary":
      step = STEPS["steps"]
    before = set(tiny.kept(workdir))
    pattern = f"{step}*"

    def written():
      found = (workdir / "checkpoints").glob(pattern)
      return any(path.name != str(step) or step not in before for path in found)

    return started.alive_when(written) and started.alive_after(
      self._draw.uniform(0, 0.2)
    )

  @property
  def processes(self) -> int:
    """How many processes a run has."""
    return self._processes

  @property
  def cache(self) -> Path:
    """Where compiled programs are kept."""
    return self._directory / "cache"

  def choose(self, things: Sequence[Any]) -> Any:
    """One of some things, at random."""
    return self._draw.choice(things)


class Processes:
  """The processes of a run, started together; use it in a `with` block."""

  def __init__(self, arguments: Sequence[str], test: KillTest):
    self._test = test
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XDG_CACHE_HOME": str(test.cache),
      "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    flags: list[list[str]] = [[]]
    if test.processes == 2:
      with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"--coordinator_address=127.0.0.1:{probe.getsockname()[1]}"
      # One that is killed before it joins is waited for so long.
      common = [address, "--num_processes=2", "--join_seconds=60"]
      flags = [[*common, f"--process_id={i}"] for i in range(2)]
    self._logs = [tempfile.TemporaryFile() for _ in flags]  # noqa: SIM115
    self._all = [
      subprocess.Popen(
        [sys.executable, "-m", "perl_jax.main", *arguments, *more],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
      )
      for more, log in zip(flags, self._logs, strict=True)
    ]

  def __enter__(self) -> "Processes":
    return self

  def __exit__(self, *_: object) -> None:
    for process, log in zip(self._all, self._logs, strict=True):
      process.kill()
      process.wait()
      log.close()

  def _said(self) -> Iterator[str]:
    for log in self._logs:
      log.seek(0)
      yield log.read().decode(errors="replace")[-2000:]

  def wait(self, *statuses: int) -> None:
    """Waits until all have ended with one of these statuses.

    Raises:
      ValueError: One has another status; shows what all have said.
    """
    for process in self._all:
      if process.wait(DEADLINE) not in statuses:
        said = "\n----\n".join(self._said())
        raise ValueError(f"ended with {process.returncode}:\n{said}")

  def alive_after(self, seconds: float) -> bool:
    """Whether all live so many seconds from now."""
    end = time.monotonic() + seconds
    return self.alive_when(lambda: time.monotonic() >= end)

  def alive_when(self, condition: Callable[[], bool]) -> bool:
    """Waits for a condition; whether all lived until then."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
      if any(process.poll() is not None for process in self._all):
        return False
      if condition():
        return True
      time.sleep(0.003)
    raise ValueError(f"nothing in {DEADLINE} s:\n" + "\n".join(self._said()))

  def end(self, number: int) -> str:
    """Sends a signal to one of them; what is wrong with how all end, or ""."""
    self._test.choose(self._all).send_signal(number)
    for process in self._all:
      process.wait(DEADLINE)
    if number != signal.SIGTERM:
      return ""
    for process, said in zip(self._all, self._said(), strict=True):
      # It may have ended by itself a moment before.
      if process.returncode not in (0, STOPPED) or "Traceback" in said:
        return f"ended with {process.returncode}:\n{said}"
    return ""


def _is_pipeline(name: str) -> bool:
  return name == "pipeline"


if __name__ == "__main__":
  sys.exit(main())
