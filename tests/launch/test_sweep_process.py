"""How long a sweep lets a run take."""

import signal
import sys

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
