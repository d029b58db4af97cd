"""What is shown on a terminal, and what is left of it when it ends."""

import io
import logging
import sys

import pytest
from absl import logging as absl_logging
from rich.console import Console

from perl_jax.reporting import terminal
from tests.reporting.runs import RESULTS

SUMMARY = {
  "rl.gold_before": 0.412,
  "rl.gold_after": 0.79,
  "rl.kl": 5.25,
  "seconds.total": 3723.0,
}


def plain_console():
  return Console(file=io.StringIO(), width=60)


def colour_console():
  return Console(file=io.StringIO(), force_terminal=True, width=100)


@pytest.fixture
def stderr(monkeypatch):
  """The process's standard error stream, which absl's handler writes to."""
  stream = io.StringIO()
  monkeypatch.setattr(sys, "__stderr__", stream)
  handler = absl_logging.get_absl_handler().python_handler
  before = handler.setStream(stream)
  yield stream
  if before is not None:
    handler.setStream(before)


@pytest.fixture
def handler():
  """A handler of the root logger, whose stream each test sets."""
  found = logging.StreamHandler(io.StringIO())
  logging.getLogger().addHandler(found)
  yield found
  logging.getLogger().removeHandler(found)


def streams(*handlers):
  return [handler.stream for handler in handlers]


def test_log_records_are_printed_above_the_live_bar(stderr, handler):
  handler.setStream(stderr)
  console = colour_console()
  progress = terminal.Progress("sft", 3, show=("loss",), console=console)
  progress.start()
  for step in range(3):
    progress.update(step, {"train/loss": 0.5})
  logging.getLogger().error("checkpoint saved")
  absl_logging.error("from absl")
  progress.stop(finished=True)
  shown = console.file.getvalue()
  for text in ("checkpoint saved", "from absl", "3/3", "loss 0.5"):
    assert text in shown
  assert stderr.getvalue() == ""
  logging.getLogger().error("afterwards")
  assert "afterwards" in stderr.getvalue()
  assert "afterwards" not in console.file.getvalue()


def test_every_handler_gets_its_stream_back(stderr, handler):
  handler.setStream(stderr)
  handlers = handler, absl_logging.get_absl_handler().python_handler
  before = sys.stderr
  progress = terminal.Progress("sft", 3, console=colour_console())
  progress.start()
  progress.stop(finished=False)
  assert streams(*handlers) == [stderr, stderr]
  assert sys.stderr is before


def test_other_streams_are_left_alone(stderr, handler):
  """A handler of a file, and one whose stream was set while the bar is live."""
  file = handler.stream
  python_handler = absl_logging.get_absl_handler().python_handler
  progress = terminal.Progress("sft", 3, console=colour_console())
  progress.start()
  assert handler.stream is file
  python_handler.setStream(file)
  progress.stop(finished=True)
  assert streams(handler, python_handler) == [file, file]


def test_without_a_terminal_no_handler_changes(stderr, handler):
  handler.setStream(stderr)
  progress = terminal.Progress("sft", 3, console=plain_console())
  progress.start()
  assert handler.stream is stderr
  progress.stop(finished=False)


def test_achieved_table_plain_and_on_a_terminal():
  plain = plain_console()
  path = "/a/very/long/path/that/does/not/fit/a/terminal/of/60/report.html"
  terminal.achieved_table(
    SUMMARY, {"report": path}, results=RESULTS, console=plain
  )
  lines = plain.file.getvalue().splitlines()
  assert lines[0] == "What was achieved"
  assert " ".join(lines[2].split()) == (
    "Policy: gold success 41.2% 79.0% +37.8 points"
  )
  assert lines[-1] == f"  report  {path}"
  assert "\x1b" not in plain.file.getvalue()
  colour = Console(file=io.StringIO(), force_terminal=True, width=100)
  terminal.achieved_table(
    SUMMARY, {"report": path}, results=RESULTS, console=colour
  )
  assert "+37.8 points" in colour.file.getvalue()


def test_achieved_table_without_headline_shows_what_there_is():
  console = plain_console()
  found = {"loss": 0.5, "name": "x"}
  terminal.achieved_table(found, {}, results={}, console=console)
  assert " ".join(console.file.getvalue().split()) == (
    "What was achieved before after change loss 0.500"
  )
