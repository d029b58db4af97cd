"""What a command prints when nobody takes it any more: the run goes on.

`| head` ends after its lines, a Ctrl-C ends `tee` as well, and the disk of a
log may be full. Python raises an error then wherever somebody prints, flushes,
or ends the process. It is said once, and what follows goes nowhere.

Nothing is imported here that takes time: see `perl_jax.starting`.
"""

import contextlib
import io
import os
import sys

_NAMES = {1: "stdout", 2: "stderr"}


class _Lasting(io.FileIO):
  """A standard stream; what cannot be written to it is dropped."""

  def write(self, data) -> int | None:
    """Writes bytes, as all that prints does in the end."""
    try:
      return super().write(data)
    except OSError as error:
      _lose(self.fileno())
      say_lost(error)
      return len(data)


def keep() -> None:
  """Lets nothing that is printed by this process raise an error.

  A stream that the process was started without is one that goes nowhere: the
  next file that is opened would have its number, and get what others print.
  """
  for number, name in _NAMES.items():
    stream = getattr(sys, name)
    if stream is None:
      _open(number)
    elif not _is_standard(stream, number):
      continue  # somebody has put another in its place
    made = _wrapped(stream, number)
    setattr(sys, name, made)
    setattr(sys, f"__{name}__", made)


def say_lost(error: OSError) -> None:
  """Says on standard error, if that can be written, that the output is lost.

  Args:
    error: Why.
  """
  said = (
    f"The output cannot be written any more ({error.strerror or error}): what"
    " would be printed is not shown, and the run goes on.\n"
  )
  with contextlib.suppress(OSError):
    os.write(2, said.encode())


def _is_standard(stream: io.TextIOBase, number: int) -> bool:
  if stream is not getattr(sys, f"__{_NAMES[number]}__"):
    return False
  try:
    return stream.fileno() == number
  except (OSError, ValueError, AttributeError):
    return False


def _open(number: int) -> None:
  try:
    os.fstat(number)
  except OSError:
    _lose(number)


def _lose(number: int) -> None:
  """Lets a file descriptor lead nowhere, also for what C++ writes to it."""
  nowhere = os.open(os.devnull, os.O_RDWR)
  if nowhere == number:
    os.set_inheritable(number, True)
    return
  os.dup2(nowhere, number)
  os.close(nowhere)


def _wrapped(before: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
  """The stream of a descriptor, with the settings of the one before it."""
  raw = _Lasting(number, "wb", closefd=False)
  raw.name = f"<{_NAMES[number]}>"
  through = getattr(before, "write_through", False)
  if before is not None:
    before.flush()
  return io.TextIOWrapper(
    raw if through else io.BufferedWriter(raw),
    encoding=getattr(before, "encoding", "utf-8"),
    errors=getattr(before, "errors", "backslashreplace"),
    line_buffering=getattr(before, "line_buffering", True),
    write_through=through,
  )
