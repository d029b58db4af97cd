"""A console whose output is gone, in a program that is no command."""

import errno
import io

import pytest

from perl_jax.reporting import terminal
from perl_jax.reporting.console import Console


class Refused(io.StringIO):
  """Takes some lines, and then none."""

  def __init__(self, number, lines, at="write"):
    super().__init__()
    self.number, self.left, self.at = number, lines, at

  def write(self, text):
    if self.at == "write":
      self._count()
    return super().write(text)

  def flush(self):
    if self.at == "flush":
      self._count()

  def _count(self):
    self.left -= 1
    if self.left < 0:
      raise OSError(self.number, "no more")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", ["write", "flush"])
def test_it_is_quiet_and_says_so_once(capfd, number, at):
  file = Refused(number, 1, at)
  console = Console(file=file)
  for _ in range(3):
    terminal.print_plain(console, "a line")
  assert file.getvalue() in ("a line\n", "a line\na line\n") and console.quiet
  assert capfd.readouterr().err.count("(no more)") == 1


def test_a_live_bar_goes_on(capfd):
  console = Console(file=Refused(errno.EPIPE, 2), force_terminal=True)
  shown = terminal.Progress("sft", 9, console=console)
  shown.start()
  for step in range(1, 10):
    shown.update(step)
  shown.stop(finished=True)
  assert console.quiet and capfd.readouterr().err.count("(no more)") == 1


def test_it_writes_to_the_standard_output_of_the_moment(capsys):
  console = Console()
  terminal.print_plain(console, "a line")
  assert capsys.readouterr().out == "a line\n"
