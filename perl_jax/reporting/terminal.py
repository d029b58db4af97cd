"""What a running stage shows: a progress bar, or plain lines when piped."""

import collections
import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import logging as absl_logging
from rich import box, progress, text
from rich.table import Column, Table

from perl_jax.reporting import headline
from perl_jax.reporting import numbers as numbers_lib
from perl_jax.reporting.console import Console

# Steps in this many last updates give the rate, so that a slow first step
# (compilation) is soon forgotten.
_WINDOW = 30

# Live bars of this process, the innermost last. Rich draws one at a time, so
# that what happens meanwhile gets a row of it.
_live_bars: list[progress.Progress] = []


class Progress:
  """Step, rate, time left and the metrics that matter, on one line.

  On a terminal the line is a live bar, and what is logged meanwhile scrolls
  above it. Elsewhere a plain line is printed for the first update, then at
  most every `plain_seconds`, and for the last step.
  """

  def __init__(
    self,
    name: str,
    total_steps: int,
    first_step: int = 0,
    show: Sequence[str] = (),
    console: Console | None = None,
    plain_seconds: float = 5.0,
  ):
    """Shows nothing yet.

    Args:
      name: Name of the stage.
      total_steps: Steps of the whole stage.
      first_step: Steps that were done before, by a run that is resumed.
      show: Metrics on the line, by key (`train/loss`) or last part (`loss`).
      console: Where to print; the standard output if None.
      plain_seconds: Least time between two plain lines.
    """
    self._name, self._total = name, total_steps
    self._show, self._shown = tuple(show), {}
    self._console = console or Console()
    self._live = can_be_live(self._console)
    self._plain_seconds, self._last_line = plain_seconds, -float("inf")
    self._step, self._printed_step = first_step, -1
    self._times = collections.deque(maxlen=_WINDOW)
    self._stack = contextlib.ExitStack()

  def start(self) -> None:
    """Shows the bar, if there is a terminal for it."""
    if not self._live:
      return
    self._bar = self._stack.enter_context(own_bar(self._console, self._name))
    self._task = self._bar.add_task(
      self._name, total=self._total, completed=self._step, status=self._status
    )

  def update(self, step: int, metrics: Mapping[str, float] = {}) -> None:
    """Moves on to `step`, with the latest values of the metrics to show."""
    self._step = step
    if not self._times or self._times[-1][1] != step:
      self._times.append((time.monotonic(), step))
    for key, value in metrics.items():
      label = self._label(key)
      if label:
        self._shown[label] = value
    if self._live:
      self._bar.update(self._task, completed=step)
    else:
      self._print(force=step >= self._total)

  def stop(self, finished: bool) -> None:
    """Ends the line; a run that has finished shows all its steps as done."""
    # The last step of a loop over range(total_steps) is total_steps - 1.
    if finished and self._step >= self._total - 1:
      self._step = self._total
    if self._live:
      self._bar.update(self._task, completed=self._step)
    elif self._times and self._printed_step < self._step:
      self._print(force=True)
    self._stack.close()

  def _label(self, key: str) -> str:
    prefix, _, name = key.rpartition("/")
    if key in self._show:
      return key
    if name not in self._show:
      return ""
    return f"{prefix} {name}" if prefix == "validation" else name

  def _rate(self) -> float:
    if len(self._times) < 2:
      return 0.0
    (start, first), (end, last) = self._times[0], self._times[-1]
    return max(0.0, (last - first) / max(end - start, 1e-9))

  def _status(self) -> str:
    """`120/600  3.2 steps/s  2:29 left  loss 0.412`."""
    rate = self._rate()
    parts = [f"{self._step}/{self._total}"]
    if rate >= 1:
      parts.append(f"{rate:.3g} steps/s")
    elif rate > 0:
      parts.append(f"{1 / rate:.3g} s/step")
    if rate > 0 and self._step < self._total:
      left = numbers_lib.duration((self._total - self._step) / rate)
      parts.append(f"{left} left")
    parts += [f"{k} {float(v):.4g}" for k, v in self._shown.items()]
    return "  ".join(parts)

  def _print(self, force: bool) -> None:
    now = time.monotonic()
    if force or now - self._last_line >= self._plain_seconds:
      self._last_line, self._printed_step = now, self._step
      print_plain(self._console, f"{self._name}  {self._status()}")


class _Status(progress.ProgressColumn):
  """The text of `status`, a field of the row, a function without arguments."""

  def render(self, task: progress.Task) -> text.Text:
    """Calls it: a time goes on while nothing else happens."""
    return text.Text(task.fields["status"]())


def can_be_live(console: Console) -> bool:
  """Whether lines of a console can be updated in place."""
  return console.is_terminal and not console.is_dumb_terminal


def live_bar() -> progress.Progress | None:
  """The live bar that is shown at present, or None."""
  return _live_bars[-1] if _live_bars else None


@contextlib.contextmanager
def own_bar(
  console: Console, name: str, transient: bool = False
) -> Iterator[progress.Progress]:
  """Shows a live bar; each row needs a field `status`, a function for its text.

  Args:
    console: A terminal.
    name: A name that is shown whole, however narrow the terminal is.
    transient: Whether the bar disappears in the end.
  """
  bar = progress.Progress(
    progress.TextColumn(
      "{task.description}",
      style="bold",
      markup=False,
      table_column=Column(no_wrap=True, min_width=len(name)),
    ),
    progress.BarColumn(20, table_column=Column(min_width=8)),
    _Status(),
    console=console,
    transient=transient,
  )
  with bar, _logging_above_the_bar():
    _live_bars.append(bar)
    try:
      yield bar
    finally:
      _live_bars.remove(bar)


def print_plain(console: Console, line: str) -> None:
  """Prints a line as it is: no wrapping, markup or colour."""
  console.print(text.Text(line), soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _logging_above_the_bar() -> Iterator[None]:
  """Prints log records above the live bar instead of into it.

  While the bar is live, rich has replaced sys.stderr by a file that prints
  above it, but a handler keeps the stream that was there when it was made. So
  handlers of the root logger and of absl that write to the standard streams
  write to that file meanwhile. They get their stream back in the end, unless
  it was changed by someone else.
  """
  handlers = {*logging.getLogger().handlers}
  handlers.add(absl_logging.get_absl_handler().python_handler)
  above = sys.stderr
  before = {
    handler: handler.setStream(above)
    for handler in handlers
    if isinstance(handler, logging.StreamHandler)
    and handler.stream in (sys.__stderr__, sys.__stdout__)
  }
  try:
    yield
  finally:
    for handler, stream in before.items():
      if handler.stream is above and stream is not None:
        handler.setStream(stream)


def achieved_table(
  summary: Mapping[str, object],
  paths: Mapping[str, str | Path],
  *,
  results: Mapping[str, str],
  title: str = "What was achieved",
  console: Console | None = None,
) -> None:
  """Prints the end of a run: the headline rows, then where things are.

  Args:
    summary: The flat summary, see `perl_jax.reporting.headline`. Without any
      headline row in it, its scalars are printed as they are.
    paths: What to look at, by name, for example `{"report": workdir /
      "report.html"}`; printed whole so that they can be clicked or copied.
    results: {name of a stage: name of what it makes}, in the order of the
      stages.
    title: Heading of the table.
    console: Where to print; the standard output if None.
  """
  console = console or Console()
  rows = headline.rows(summary, results)
  if not rows:
    rows = [
      headline.Row(key, "", numbers_lib.show(key, value), "", None)
      for key, value in summary.items()
      if numbers_lib.number(value) == numbers_lib.number(value)
    ]
  if console.is_terminal:
    _print_table(console, title, rows)
  else:
    _print_lines(console, title, rows)
  width = max((len(name) for name in paths), default=0)
  for name, path in paths.items():
    print_plain(console, f"  {name:<{width}}  {path}")


def _print_table(
  console: Console, title: str, rows: Sequence[headline.Row]
) -> None:
  table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
  table.add_column("")
  for column in ("before", "after", "change"):
    table.add_column(column, justify="right")
  for row in rows:
    style = {True: "green", False: "red", None: ""}[row.better]
    table.add_row(
      text.Text(row.label),
      text.Text(row.before),
      text.Text(row.after, style="bold"),
      text.Text(row.change, style=style),
    )
  console.print(table)


def _print_lines(
  console: Console, title: str, rows: Sequence[headline.Row]
) -> None:
  cells = [("", "before", "after", "change"), *(row[:4] for row in rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(4)]
  print_plain(console, title)
  for label, *values in cells:
    numbers = [f"{v:>{w}}" for v, w in zip(values, widths[1:], strict=True)]
    line = f"  {label:<{widths[0]}}  {'  '.join(numbers)}"
    print_plain(console, line.rstrip())
