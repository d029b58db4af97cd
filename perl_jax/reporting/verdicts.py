"""What judges said of pairs of responses, as HTML."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from perl_jax.reporting import markup, numbers, samples, vocabulary

Row = Mapping[str, object]

# Columns of the table of judges, by the name of a metric.
_SHARES = ("win_rate", "tie_rate", "loss_rate")
_RATES = ("win_rate_ties_half", "win_rate_length_controlled")
_OPEN, _FOLDED = 3, 20


def verdicts_html(
  rows: Sequence[Row], summary: Mapping[str, object], stage: str
) -> str:
  """Tables of win rates and of agreement, and the first pairs; "" without any.

  Args:
    rows: Lines of verdicts.jsonl.
    summary: The flat summary, with `<stage>.by.<judge>.win_rate`.
    stage: Name of the stage that judged.
  """
  rows = [row for row in rows if isinstance(row.get("judges"), Mapping)]
  if not rows:
    return ""
  labels = list(dict.fromkeys(label for row in rows for label in row["judges"]))
  other = str(rows[0].get("against_is", "other"))
  parts = [
    f"<p>The policy's responses to {len(rows)} held-out prompts beside those of"
    f" the {escape(other)}. Each pair is judged in both orders; a win has to"
    " hold in both, everything else is a tie. Intervals: 95%, bootstrap over"
    " prompts.</p>",
    _table(labels, summary, f"{stage}.by."),
    _agreement(labels, summary, f"{stage}.by."),
  ]
  cards = [_card(row, other, i) for i, row in enumerate(rows, start=1)]
  parts += ["<p>The first pairs, not selected.</p>", *cards[:_OPEN]]
  if cards[_OPEN:]:
    folded = cards[_OPEN : _OPEN + _FOLDED]
    parts.append(
      f"<details><summary>{len(folded)} more pairs</summary>"
      f"{''.join(folded)}</details>"
    )
  return "\n".join(part for part in parts if part)


def _table(
  labels: Sequence[str], summary: Mapping[str, object], above: str
) -> str:
  header = ["Judge", "", *map(vocabulary.label_of, (*_SHARES, *_RATES))]
  header += ["same verdict in both orders", "no verdict"]
  rows = []
  for label in labels:

    def value(name: str, label: str = label) -> object:
      return summary.get(f"{above}{label}.{name}")

    shares = [numbers.number(value(name)) for name in _SHARES]
    colours = ("c1", "muted", "c2")
    bar = markup.bar(
      (share, colour)
      for share, colour in zip(shares, colours, strict=True)
      if share > 0
    )
    cells = []
    for name in (*_SHARES, *_RATES):
      text = numbers.show(name, value(name))
      low, high = value(f"{name}_low"), value(f"{name}_high")
      if not math.isnan(numbers.number(low)):
        text += f" ({numbers.show(name, low)} to {numbers.show(name, high)})"
      cells.append(text)
    cells.append(numbers.show("consistency", value("consistency")))
    faults = [value(name) for name in ("refused", "unparsable", "cut")]
    cells.append(f"{sum(int(f) for f in faults if isinstance(f, int))}")
    rows.append(
      f'<tr><th scope="row">{escape(label)}</th><td class="bars">{bar}</td>'
      + "".join(f'<td class="number">{markup.number(c)}</td>' for c in cells)
      + "</tr>"
    )
  return markup.table(header, rows)


def _agreement(
  labels: Sequence[str], summary: Mapping[str, object], above: str
) -> str:
  rows = []
  for i, first in enumerate(labels):
    for second in labels[i + 1 :]:
      key = f"{above}{first}_and_{second}."
      if f"{key}agreement" not in summary:
        continue
      cells = [
        numbers.show(name, summary.get(f"{key}{name}"))
        for name in ("agreement", "kappa", "judged")
      ]
      rows.append(
        f'<tr><th scope="row">{escape(first)} and {escape(second)}</th>'
        + "".join(f'<td class="number">{markup.number(c)}</td>' for c in cells)
        + "</tr>"
      )
  if not rows:
    return ""
  names = ("agreement", "kappa", "judged")
  return markup.table(["Judges", *map(vocabulary.label_of, names)], rows)


def _card(row: Row, other: str, number: int) -> str:
  answers = "".join(
    f'<div class="answer"><header><h4>{escape(name.capitalize())}</h4>'
    f"</header><pre>{escape(samples.shown(row.get(field, '')))}</pre></div>"
    for field, name in (("policy", "policy"), ("against", other))
  )
  said = "".join(_said(label, one) for label, one in row["judges"].items())
  return (
    f'<article class="sample"><h3>Pair {number}</h3>'
    f"{samples.prompt_html(row.get('prompt'))}"
    f'<div class="answers">{answers}</div>{said}</article>'
  )


def _said(label: str, said: object) -> str:
  """A judge's outcome, with what it said in both orders folded away."""
  if not isinstance(said, Mapping):
    return ""
  outcome = said.get("outcome")
  style = {"win": "good", "loss": "bad"}.get(str(outcome), "note")
  reasons = said.get("reasons")
  texts = reasons if isinstance(reasons, list) else []
  text = "\n\n".join(dict.fromkeys(samples.shown(t) for t in texts if t))
  return (
    f'<details><summary>{escape(label)}: <span class="{style}">'
    f"{escape(str(outcome or 'no verdict'))}</span></summary>"
    f'<pre class="block">{escape(text)}</pre></details>'
  )
