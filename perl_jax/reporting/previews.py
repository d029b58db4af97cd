"""Rows as they will be trained on, for a terminal or a log."""

import os
from collections.abc import Sequence

from rich.text import Text

from perl_jax.reporting import conversations, terminal
from perl_jax.reporting.console import Console

# Longer parts are shown without their middle.
_MOST = 3000


def show(
  rows: Sequence[Sequence[tuple[str, str, bool]]],
  console: Console | None = None,
) -> None:
  """Prints the parts of rows: dim what is given, bright what is learned.

  Without colours (no terminal, or NO_COLOR is set) the names before the parts
  alone tell them apart.

  Args:
    rows: The parts of each row: a name, the text, and whether it is learned.
    console: Where to print; the standard output if None.
  """
  console = console or Console(highlight=False)
  styled = console.is_terminal and not os.environ.get("NO_COLOR")
  wide = max((len(name) for row in rows for name, *_ in row), default=0)
  for number, row in enumerate(rows, start=1):
    terminal.print_plain(console, f"Row {number} of {len(rows)}")
    for name, text, learned in row:
      lines = _shortened(conversations.printable(text, console)).split("\n")
      for i, line in enumerate(lines):
        line = f"  {name if not i else '':{wide}} | {line}"
        if styled:
          style = "bold" if learned else "dim"
          console.print(Text(line, style=style), soft_wrap=True)
        else:
          terminal.print_plain(console, line)
  if rows:
    terminal.print_plain(console, "")


def _shortened(text: str) -> str:
  if len(text) <= _MOST:
    return text
  half = _MOST // 2
  left_out = len(text) - 2 * half
  return f"{text[:half]} [{left_out} characters] {text[-half:]}"
