"""The console on which a run is shown; it never ends the run."""

from typing import IO

from rich import console

from perl_jax import streams


class _Lasting:
  """A file of text; what cannot be written to it is dropped."""

  def __init__(self, file: IO[str], of: "Console"):
    """Takes a file, and the console to silence when it fails."""
    self._file, self._of = file, of

  def __getattr__(self, name: str) -> object:
    return getattr(self._file, name)

  def write(self, text: str) -> int:
    """Writes, or silences the console."""
    try:
      return self._file.write(text)
    except OSError as error:
      self._of.lose(error)
      return len(text)

  def flush(self) -> None:
    """Flushes, or silences the console."""
    try:
      self._file.flush()
    except OSError as error:
      self._of.lose(error)


class Console(console.Console):
  """Rich's, but for an output that cannot be written any more.

  Rich ends the process when a pipe has no reader, and raises what a disk says
  that is full. This one says it once on standard error, and is quiet.
  """

  @property
  def file(self) -> IO[str]:
    """What is written to, by default the standard output of the moment."""
    return _Lasting(super().file, self)

  @file.setter
  def file(self, new_file: IO[str]) -> None:
    self._file = new_file

  def lose(self, error: OSError) -> None:
    """Is quiet from now on, and says why the first time."""
    if not self.quiet:
      self.quiet = True
      streams.say_lost(error)
