"""Pieces of HTML that several sections of the report are made of."""

from collections.abc import Iterable, Sequence
from html import escape

from perl_jax.reporting import svg


def figures(drawn: Iterable[svg.Figure], large: bool = False) -> str:
  """Drawings in a grid, each with title, legend and description."""
  parts = []
  for figure in drawn:
    parts.append(
      f"<figure><figcaption><b>{escape(figure.title)}</b>"
      f"{legend(figure.legend)}</figcaption>"
      f'<div role="img" aria-label="{escape(figure.alt)}">{figure.svg}</div>'
      f'<p class="note">{escape(figure.note)}</p></figure>'
    )
  kind = "figures large" if large else "figures"
  return f'<div class="{kind}">{"".join(parts)}</div>'


def legend(items: Iterable[tuple[str, str, str]]) -> str:
  """A legend of (label, colour, kind of line), see `svg.Line`."""
  chips = "".join(
    f'<span><i class="{kind}" style="--chip: var(--{colour})"></i>'
    f"{escape(text)}</span>"
    for text, colour, kind in items
  )
  return f'<div class="legend">{chips}</div>'


def bar(parts: Iterable[tuple[float, str]]) -> str:
  """A bar of (share of the width, colour); the numbers stand beside it."""
  spans = "".join(
    f'<span style="width: {100 * share:.2f}%; --chip: var(--{colour})"></span>'
    for share, colour in parts
  )
  return f'<div class="bar" aria-hidden="true">{spans}</div>'


def table(header: Sequence[str], rows: Sequence[str]) -> str:
  """A table of rows in HTML; columns after the first are numbers."""
  cells = []
  for i, text in enumerate(header):
    kind = ' class="number"' if i and text else ""
    cells.append(
      f'<th scope="col"{kind}>{escape(text)}</th>' if text else "<td></td>"
    )
  return (
    f'<div class="wide"><table><thead><tr>{"".join(cells)}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def number(text: str) -> str:
  """A number with a true minus, its interval in small print below."""
  text, bracket, interval = escape(text).replace("-", "&minus;").partition(" (")
  small = f'<br><span class="note">({interval}</span>' if bracket else ""
  return text + small
