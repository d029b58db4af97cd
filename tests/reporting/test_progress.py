"""What the metrics writer shows of a run while it goes on."""

import io
import logging
import sys

import pytest
from absl import logging as absl_logging
from rich.console import Console

from perl_jax import metrics
from perl_jax.reporting import terminal


def plain_console():
  return Console(file=io.StringIO(), width=60)


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until the test moves it."""
  now = [100.0]
  monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
  return now


def test_plain_lines_are_few_and_say_rate_and_time_left(tmp_path, clock):
  console = plain_console()
  with metrics.Writer(
    tmp_path,
    total_steps=100,
    name="rl",
    show=("reward", "rollout/kl"),
    console=console,
    plain_seconds=5.0,
  ) as writer:
    for step in range(100):
      clock[0] += 0.5
      writer.write(step, {"rollout/reward": step / 4, "rollout/kl": 0.125})
  lines = console.file.getvalue().splitlines()
  assert lines[0] == "rl  0/100  reward 0  rollout/kl 0.125"
  assert lines[1] == (
    "rl  10/100  2 steps/s  45.0 s left  reward 2.5  rollout/kl 0.125"
  )
  assert len(lines) == 11
  assert lines[-1].startswith("rl  100/100  2 steps/s  reward 24.75")


def test_the_rate_after_a_resume_counts_only_new_steps(tmp_path, clock):
  console = plain_console()
  with metrics.Writer(
    tmp_path, total_steps=1000, resume_step=900, console=console
  ) as writer:
    for step in (900, 904, 908):
      clock[0] += 8
      writer.write(step, {})
  assert "908/1000  2 s/step  3:04 left" in console.file.getvalue()


def test_a_failed_run_is_not_shown_as_finished(tmp_path):
  console = plain_console()
  writer = metrics.Writer(tmp_path, total_steps=2, console=console)
  with pytest.raises(RuntimeError, match="boom"), writer:
    writer.write(0, {})
    writer.write(1, {})
    raise RuntimeError("boom")
  assert "2/2" not in console.file.getvalue()
  assert "1/2" in console.file.getvalue()


def test_validation_metrics_are_told_from_training(tmp_path):
  console = plain_console()
  with metrics.Writer(
    tmp_path, total_steps=2, show=("loss",), console=console
  ) as writer:
    writer.write(1, {"train/loss": 0.5, "validation/loss": 0.75})
  assert "loss 0.5  validation loss 0.75" in console.file.getvalue()


def test_the_bar_is_live_and_logging_goes_through_it(tmp_path, monkeypatch):
  console = Console(file=io.StringIO(), force_terminal=True, width=100)
  stderr = io.StringIO()
  monkeypatch.setattr(sys, "stderr", stderr)
  monkeypatch.setattr(sys, "__stderr__", stderr)
  python_handler = absl_logging.get_absl_handler().python_handler
  other = logging.StreamHandler(stderr)
  logging.getLogger().addHandler(other)
  before = python_handler.setStream(stderr)
  try:
    with metrics.Writer(
      tmp_path, total_steps=3, name="sft", show=("loss",), console=console
    ) as writer:
      for step in range(3):
        writer.write(step, {"train/loss": 0.5})
      logging.getLogger().error("checkpoint saved")
      assert python_handler.stream is sys.stderr
      assert python_handler.stream is not stderr
    assert python_handler.stream is stderr
    assert other.stream is stderr
  finally:
    logging.getLogger().removeHandler(other)
    if before is not None:
      python_handler.setStream(before)
  shown = console.file.getvalue()
  assert "checkpoint saved" in shown
  assert "checkpoint saved" not in stderr.getvalue()
  assert "3/3" in shown
  assert "loss 0.5" in shown
