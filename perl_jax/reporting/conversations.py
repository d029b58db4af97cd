"""What anchor and policy answered, side by side, for a terminal or a log."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perl_jax.reporting import numbers, terminal
from perl_jax.reporting.console import Console

# Below this width two columns of text are too narrow to read.
_WIDE = 80
_ROLES = ("anchor", "policy")


def show(
  rows: Sequence[Mapping[str, object]],
  *,
  title: str = "Held-out prompts, answered by anchor and policy",
  notice: str = "",
  console: Console | None = None,
) -> None:
  """Prints conversations, the responses of anchor and policy below a prompt.

  On a terminal of 80 columns or more the two stand side by side, elsewhere one
  below the other. Control characters in a text of a model are not printed.

  Args:
    rows: Lines of samples.jsonl: `prompt`, `anchor`, `policy`; optional are
      `<role>_reward` and `<role>_stopped`. A response that was cut off at the
      most tokens, where the latter is false, ends with an ellipsis.
    title: What stands above all.
    notice: A sentence that stands above them, or "".
    console: Where to print; the standard output if None.
  """
  console = console or Console()
  _print(console, title)
  if notice:
    _print(console, f"  {notice}")
  for number, row in enumerate(rows, start=1):
    _print(console, "")
    _print(console, f"  {number} of {len(rows)}")
    _print(console, printable(str(row["prompt"]), console), indent=4)
    if console.is_terminal and console.width >= _WIDE:
      console.print(Padding(_columns(row, console), (0, 0, 0, 2)))
      continue
    for role in _ROLES:
      _print(console, f"  {_title(row, role)}")
      _print(console, _response(row, role, console), indent=4)
  _print(console, "")


def printable(text: str, console: Console) -> str:
  """The text without control characters, in what the console can encode."""
  kept = "".join(
    c if c.isprintable() or c in "\n\t" else " " * c.isspace() for c in text
  )
  encoding = console.encoding
  return kept.encode(encoding, "replace").decode(encoding)


def _columns(row: Mapping[str, object], console: Console) -> Table:
  table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
  for role in _ROLES:
    table.add_column(Text(_title(row, role)), ratio=1)
  table.add_row(*(Text(_response(row, role, console)) for role in _ROLES))
  return table


def _title(row: Mapping[str, object], role: str) -> str:
  reward = numbers.number(row.get(f"{role}_reward"))
  return role if math.isnan(reward) else f"{role} (reward {reward:.2f})"


def _response(row: Mapping[str, object], role: str, console: Console) -> str:
  text = printable(str(row[role]), console)
  return f"{text} ..." if row.get(f"{role}_stopped") is False else text


def _print(console: Console, text: str, indent: int = 0) -> None:
  """Prints lines: wrapped on a terminal, as they are elsewhere."""
  if console.is_terminal and indent:
    console.print(Padding(Text(text), (0, 0, 0, indent)))
    return
  for line in text.split("\n"):
    terminal.print_plain(console, " " * indent + line)
