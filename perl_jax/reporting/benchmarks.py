"""Tables of RewardBench, RewardBench 2 and RM-Bench, as HTML."""

from collections.abc import Mapping
from html import escape

from perl_jax.reporting import markup, numbers, vocabulary

_LEVELS = ("easy", "normal", "hard", "average")


def html(tables: Mapping[str, object]) -> str:
  """The tables of benchmark.json; "" if there are none.

  Args:
    tables: What task `score` has written there.
  """
  parts = []
  rewardbench = _object(tables, "rewardbench")
  if rewardbench:
    parts.append(_rewardbench(rewardbench))
  rewardbench2 = _object(tables, "rewardbench2")
  if rewardbench2:
    parts.append(_rewardbench2(rewardbench2))
  rm_bench = _object(tables, "rm_bench")
  if rm_bench:
    parts.append(_rm_bench(rm_bench))
  return "".join(parts)


def _rewardbench(found: Mapping[str, object]) -> str:
  sections = [
    _row(vocabulary.label_of(name), estimate)
    for name, estimate in _object(found, "sections").items()
  ]
  subsets = [
    _row(name, estimate, _count(estimate))
    for name, estimate in _object(found, "subsets").items()
  ]
  fewer = [
    f"{name} {count[0]} of {count[1]}"
    for name, count in _object(found, "fewer").items()
    if isinstance(count, list | tuple) and len(count) == 2
  ]
  note = _missing(found)
  if fewer:
    text = f"Fewer pairs than it has: {', '.join(fewer)}."
    note += f'<p class="note">{escape(text)}</p>'
  return (
    "<h3>RewardBench</h3>"
    f"{markup.table(('', 'Accuracy'), sections)}{note}"
    f"<details><summary>{len(subsets)} subsets</summary>"
    f"{markup.table(('', 'Accuracy', 'Pairs'), subsets)}</details>"
  )


def _rewardbench2(found: Mapping[str, object]) -> str:
  rows = [
    _row(vocabulary.label_of(name), estimate)
    for name, estimate in _object(found, "scores").items()
  ]
  return (
    "<h3>RewardBench 2</h3>"
    "<p>How often the right one of four responses has the highest score; of"
    " ties, the score that is defined for it.</p>"
    f"{markup.table(('', 'Score'), rows)}{_missing(found)}"
  )


def _missing(found: Mapping[str, object]) -> str:
  """What there are no rows of, as a note; "" if there are of all."""
  missing = found.get("missing")
  if not (isinstance(missing, list) and missing):
    return ""
  names = escape(", ".join(map(str, missing)))
  return f'<p class="note">There are no rows of {names}.</p>'


def _rm_bench(found: Mapping[str, object]) -> str:
  rows = [_levels("all domains", _object(found, "overall"))]
  rows += [
    _levels(name, _object(found, "domains", name))
    for name in _object(found, "domains")
  ]
  styles = found.get("styles")
  names = [str(style).replace("_", " ") for style in styles or ()]
  matrix = found.get("matrix")
  cells = [
    f'<tr><th scope="row">chosen: {escape(name)}</th>'
    + "".join(_cell(_percent(value)) for value in row)
    + "</tr>"
    for name, row in zip(names, matrix or (), strict=False)
  ]
  header = ("", *(f"rejected: {name}" for name in names))
  return (
    "<h3>RM-Bench</h3>"
    "<p>Easy: the chosen response has the fancier style; hard: the rejected"
    " one has.</p>"
    f"{markup.table(('', 'Easy', 'Normal', 'Hard', 'Average'), rows)}"
    f"{_missing(found)}{markup.table(header, cells)}"
  )


def _levels(name: str, levels: Mapping[str, object]) -> str:
  cells = "".join(_cell(_shown(levels.get(level))) for level in _LEVELS)
  return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _row(name: str, estimate: object, *more: str) -> str:
  cells = "".join(map(_cell, (_shown(estimate), *more)))
  return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _cell(text: str) -> str:
  return f'<td class="number">{markup.number(text)}</td>'


def _shown(estimate: object) -> str:
  """An estimate with its interval in brackets."""
  if not isinstance(estimate, Mapping):
    return numbers.MISSING
  low, high = _percent(estimate.get("low")), _percent(estimate.get("high"))
  return f"{_percent(estimate.get('value'))} ({low} to {high})"


def _percent(value: object) -> str:
  return numbers.show("accuracy", value)


def _count(estimate: object) -> str:
  count = estimate.get("n") if isinstance(estimate, Mapping) else None
  return numbers.MISSING if count is None else str(count)


def _object(tables: Mapping[str, object], *names: str) -> Mapping[str, object]:
  """A part of the tables, which somebody may have changed; {} if it is none."""
  found: object = tables
  for name in names:
    found = found.get(name) if isinstance(found, Mapping) else None
  return found if isinstance(found, Mapping) else {}
