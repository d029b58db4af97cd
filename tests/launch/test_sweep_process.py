"""How long a sweep lets a run take."""

import os
import signal
import subprocess
import sys

import pytest

from launch import sweep

# Ends when it is told to stop, and not before.
WAITER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
while True:
  signal.pause()
"""


def test_a_run_that_takes_too_long_saves_and_the_next_one_starts(
  tmp_path, monkeypatch, capsys
):
  words = [sys.executable, "-c", WAITER]
  monkeypatch.setattr(sweep, "command", lambda run, submit: words)
  flags = ["--config.lora.rank=2,4", "--config.reward.init=x", "--minutes=1e-6"]
  # The signal waits for the process that it is for.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
  try:
    assert (
      sweep.main(
        [f"--workdir={tmp_path}", "--config=configs/reward.py", *flags]
      )
      == 0
    )
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
  text = (tmp_path / "sweep.md").read_text()
  assert text.count("out of time") == 2
  assert "are over: told to stop" in capsys.readouterr().out


# Saves once it has heard all that it is told.
RUN = """
import sys, time
from perl_jax.hosts import signals
with signals.handled(), signals.deferred():
  print("begun", flush=True)
  end = time.monotonic() + 20
  while time.monotonic() < end and signals._told.count < 2:
    time.sleep(0.01)
  print(f"saved after {signals.told()}", flush=True)
sys.exit(75)
"""
SWEEP = """
import sys
from launch import sweep_process
sys.exit(sweep_process.call([sys.executable, "-c", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs os.killpg")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_told_by_its_sweep_too_saves(name):
  """As where a service manager ends all processes of a group."""
  with subprocess.Popen(
    [sys.executable, "-c", SWEEP, RUN],
    cwd=sweep.sweep_process.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  ) as process:
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.Signals[name])
    assert process.stdout.read() == f"saved after {name}\n"
  assert process.returncode == 75
