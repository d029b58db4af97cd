"""What is shown of a phase: lines in a log, a row of the bar on a terminal."""

import io

import pytest
from rich.console import Console

from perl_jax import hosts
from perl_jax.reporting import phases, terminal


class Timers:
  """Stands in for clock and timer: nothing happens until a test says so."""

  def __init__(self):
    self.now, self.waiting = 0.0, []

  def clock(self):
    return self.now

  def timer(self, seconds, function):
    timers, due = self.waiting, self.now + seconds

    class Timer:
      def start(self):
        timers.append((due, function))

      def cancel(self):
        if (due, function) in timers:
          timers.remove((due, function))

    return Timer()

  def sleep(self, seconds):
    """Lets time pass, and calls what is due meanwhile."""
    end = self.now + seconds
    while self.waiting and min(self.waiting)[0] <= end:
      first = min(self.waiting, key=lambda pair: pair[0])
      self.waiting.remove(first)
      self.now = first[0]
      first[1]()
    self.now = end


@pytest.fixture
def timers():
  return Timers()


def display(timers, **console):
  shown = io.StringIO()
  found = phases.Display(
    Console(file=shown, width=70, **console), timers.clock, timers.timer
  )
  return found, lambda: shown.getvalue().splitlines()


def test_a_long_phase_prints_a_line_every_ten_seconds(timers):
  made, lines = display(timers)
  with made.phase("scoring held-out rows", total=60) as part:
    for _ in range(60):
      timers.sleep(0.5)
      part.advance()
  assert lines() == [
    "scoring held-out rows  19/60  21.6 s left",
    "scoring held-out rows  39/60  10.8 s left",
    "scoring held-out rows  59/60  508 ms left",
    "scoring held-out rows  done in 30.0 s",
  ]


def test_a_phase_of_unknown_length_says_how_long_it_has_taken(timers):
  made, lines = display(timers)
  with made.phase("compiling rl step"):
    timers.sleep(75)
  assert lines()[0] == "compiling rl step  10.0 s"
  assert lines()[-2:] == [
    "compiling rl step  1:10",
    "compiling rl step  done in 1:15",
  ]
  assert len(lines()) == 8


def test_short_phases_print_nothing_and_leave_no_timer(timers):
  made, lines = display(timers)
  for _ in range(50):
    with made.phase("compiling rl step", total=3) as part:
      timers.sleep(9.9)
      part.advance(3)
  assert lines() == [] and timers.waiting == []


def test_of_nested_phases_the_lines_are_about_the_innermost(timers):
  made, lines = display(timers)
  with made.phase("answering held-out prompts", total=2) as part:
    with made.phase("compiling sample"):
      timers.sleep(12)
    part.advance()
    timers.sleep(9)
  assert lines() == [
    "compiling sample  10.0 s",
    "compiling sample  done in 12.0 s",
    "answering held-out prompts  1/2  20.0 s left",
    "answering held-out prompts  done in 21.0 s",
  ]
  assert timers.waiting == []


def test_a_phase_that_fails_is_not_done(timers):
  made, lines = display(timers)
  with pytest.raises(RuntimeError, match="boom"), made.phase("reading model"):
    timers.sleep(10)
    raise RuntimeError("boom")
  assert lines() == ["reading model  10.0 s"]
  assert timers.waiting == []


def test_a_timer_that_could_not_be_cancelled_prints_nothing(timers):
  made, lines = display(timers)
  with made.phase("first"):
    ((_, late),) = timers.waiting
  with made.phase("second"):
    late()
    assert len(timers.waiting) == 1
  assert lines() == []


def test_a_terminal_shows_a_bar_that_disappears(timers):
  made, lines = display(timers, force_terminal=True)
  with made.phase("scoring [bold]rows", total=400) as part:
    bar = terminal.live_bar()
    (row,) = bar.tasks
    timers.now = 5.0
    part.advance(100)
    assert (row.completed, row.total) == (100, 400)
    assert row.fields["status"]() == "100/400  15.0 s left"
    bar.refresh()
  text = "\n".join(lines())
  assert "scoring [bold]rows" in text and "100/400  15.0 s left" in text
  # The line is erased, and the cursor shown again.
  assert text.rstrip().endswith("\x1b[2K\x1b[?25h")
  assert terminal.live_bar() is None and timers.waiting == []


def test_a_phase_is_a_row_below_the_bar_of_its_stage(timers):
  console = Console(file=io.StringIO(), force_terminal=True, width=70)
  made, lines = display(timers, force_terminal=True)
  progress = terminal.Progress("rl", 3, show=("kl",), console=console)
  progress.start()
  progress.update(1, {"rollout/kl": 0.5})
  bar = terminal.live_bar()
  with made.phase("answering prompts", 2), made.phase("compiling sample"):
    assert [task.description for task in bar.tasks] == [
      "rl", "answering prompts", "compiling sample",
    ]  # fmt: skip
    bar.refresh()
  assert [task.description for task in bar.tasks] == ["rl"]
  progress.stop(finished=True)
  shown = console.file.getvalue()
  assert "compiling sample" in shown and "1/3" in shown and "kl 0.5" in shown
  assert lines() == []  # nothing beside the bar
  assert terminal.live_bar() is None


def test_only_process_0_shows_anything(timers, monkeypatch):
  monkeypatch.setattr(hosts, "is_primary", lambda: False)
  for console in ({}, {"force_terminal": True}):
    made, lines = display(timers, **console)
    with made.phase("compiling rl step", total=2) as part:
      timers.sleep(100)
      part.advance()
    assert lines() == [] and timers.waiting == []


def test_track_yields_the_same_things_in_their_order(timers, monkeypatch):
  made, lines = display(timers)
  monkeypatch.setattr(phases, "_display", made)
  things = [object() for _ in range(5)]
  found = []
  for thing in phases.track(iter(things), "encoding prompts", 5):
    timers.sleep(3)
    found.append(thing)
  assert found == things
  assert lines() == [
    "encoding prompts  3/5  6.67 s left",
    "encoding prompts  done in 15.0 s",
  ]


def test_a_real_timer_prints_while_the_caller_is_busy(monkeypatch):
  """No fake here: the line comes from another thread."""
  import threading

  monkeypatch.setattr(phases, "PLAIN_SECONDS", 0.01)
  printed = threading.Event()

  class Stream(io.StringIO):
    def write(self, text):
      printed.set()
      return super().write(text)

  stream = Stream()
  made = phases.Display(Console(file=stream, width=70))
  with made.phase("compiling rl step"):
    assert printed.wait(timeout=30)
  assert stream.getvalue().startswith("compiling rl step  ")
