"""Responses of anchor and policy side by side, as HTML.

Texts of models and data sets are escaped. A response that is JSON is shown
indented; if a checker found it wrong, the lines that the reference does not
have are marked.
"""

import collections
import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from perl_jax import json_text
from perl_jax.reporting import numbers, vocabulary

Row = Mapping[str, object]

# Longer texts are cut on the page (samples.jsonl has them whole).
_MOST_CHARACTERS = 4000
_OPEN, _FOLDED = 4, 40


def samples_html(rows: Sequence[Row]) -> str:
  """The samples of the last step, in the order written; "" if there are none.

  Args:
    rows: Lines of samples.jsonl: `prompt`, `reference`, and for each of the
      roles `anchor` and `policy` the response, `<role>_reward` and results of
      checks such as `<role>_gold`. Everything but one response is optional.
  """
  rows = [row for row in rows if _roles(row)]
  if not rows:
    return ""
  last = max(numbers.number(row.get("step")) for row in rows)
  if not math.isnan(last):
    rows = [row for row in rows if numbers.number(row.get("step")) == last]
  cards = [_card(row, i) for i, row in enumerate(rows, start=1)]
  parts = [f"<p>{_tally(rows)}</p>", *cards[:_OPEN]]
  if cards[_OPEN:]:
    folded = cards[_OPEN : _OPEN + _FOLDED]
    parts.append(
      f"<details><summary>{len(folded)} more samples</summary>"
      f"{''.join(folded)}</details>"
    )
  return "\n".join(parts)


def _tally(rows: Sequence[Row]) -> str:
  """How the samples were chosen, and how often anchor and policy were right."""
  step = numbers.number(rows[0].get("step"))
  when = "" if math.isnan(step) else f" of step {step:g}"
  text = f"The first samples{when} in the order in which they were written, "
  text += "not selected."
  checked = [(is_right(row, "anchor"), is_right(row, "policy")) for row in rows]
  checked = [pair for pair in checked if None not in pair]
  if checked:
    count = collections.Counter(checked)
    text += (
      f" Of {len(checked)}: both right {count[True, True]}, only the policy "
      f"{count[False, True]}, only the anchor {count[True, False]}, neither "
      f"{count[False, False]}."
    )
  return text


def is_right(row: Row, role: str) -> bool | None:
  """Whether a role's response passed the first check that there is of it.

  None if it was not checked.
  """
  for name in vocabulary.CHECKS:
    value = numbers.number(row.get(f"{role}_{name}"))
    if not math.isnan(value):
      return value >= 0.5
  return None


def _roles(row: Row) -> list[str]:
  """Fields of a sample that hold a response."""
  known = ("anchor", "policy", "response", "chosen", "rejected")
  return [role for role in known if row.get(role) is not None]


def _card(row: Row, number: int) -> str:
  reference = row.get("reference")
  answers = [_answer(row, role, reference) for role in _roles(row)]
  if reference is not None:
    answers.append(
      '<div class="answer"><header><h4>Reference</h4></header>'
      f"<pre>{escape(shown(reference))}</pre></div>"
    )
  return (
    f'<article class="sample"><h3>Sample {number}</h3>'
    f"{prompt_html(row.get('prompt'))}"
    f'<div class="answers">{"".join(answers)}</div></article>'
  )


def _answer(row: Row, role: str, reference: object) -> str:
  right = is_right(row, role)
  kind = {True: " right", False: " wrong", None: ""}[right]
  facts = []
  if right is not None:
    mark, style = ("✓ right", "good") if right else ("✗ wrong", "bad")
    facts.append(f'<span class="{style}">{mark}</span>')
  reward = numbers.number(row.get(f"{role}_reward"))
  if not math.isnan(reward):
    text = f"{reward:.3g}".replace("-", "&minus;")
    facts.append(f"<span>reward {text}</span>")
  text = _marked(row[role], reference if right is False else None)
  return (
    f'<div class="answer{kind}"><header><h4>{escape(role.capitalize())}</h4>'
    f"{''.join(facts)}</header><pre>{text}</pre></div>"
  )


def prompt_html(prompt: object) -> str:
  """A prompt, as text or as messages; "" without one."""
  if prompt is None:
    return ""
  if isinstance(prompt, str):
    return f'<div class="prompt" tabindex="0"><p>{escape(prompt)}</p></div>'
  turns = []
  for turn in prompt if isinstance(prompt, list) else [prompt]:
    if isinstance(turn, Mapping):
      speaker = escape(str(turn.get("role", "")))
      content = escape(str(turn.get("content", "")))
      turns.append(f"<p><b>{speaker}</b>{content}</p>")
    else:
      turns.append(f"<p>{escape(str(turn))}</p>")
  return f'<div class="prompt" tabindex="0">{"".join(turns)}</div>'


def _marked(response: object, reference: object) -> str:
  """Escaped text; with a reference in JSON, lines it lacks are marked."""
  text = shown(response)
  if reference is None or not (_is_json(response) and _is_json(reference)):
    return escape(text)
  left = collections.Counter(_bare(_indented(reference).splitlines()))
  lines = []
  for line, bare in zip(
    text.splitlines(), _bare(text.splitlines()), strict=True
  ):
    if left[bare]:
      left[bare] -= 1
      lines.append(escape(line))
    else:
      indent = line[: len(line) - len(line.lstrip())]
      lines.append(f"{indent}<mark>{escape(line.lstrip())}</mark>")
  return "\n".join(lines)


def _bare(lines: Sequence[str]) -> list[str]:
  return [line.strip().rstrip(",") for line in lines]


def _is_json(text: object) -> bool:
  return _indented(text) != text


def _indented(text: object) -> str:
  """JSON objects and lists indented, any other text as it is."""
  if not isinstance(text, str):
    return json.dumps(text, indent=2, ensure_ascii=False)
  try:
    value = json_text.parse(text)
    if not isinstance(value, dict | list):
      return text
    return json.dumps(value, indent=2, ensure_ascii=False)
  except (ValueError, RecursionError):
    return text


def shown(response: object) -> str:
  """A response as the page has it: JSON indented, and not too long."""
  return _cut(_indented(response))


def _cut(text: str) -> str:
  more = len(text) - _MOST_CHARACTERS
  return text if more <= 0 else f"{text[:-more]}… ({more} characters more)"
