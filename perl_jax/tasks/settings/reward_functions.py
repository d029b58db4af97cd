"""The reward functions that a config names, with their weights.

fn="mine:correct"                           a function of a module
fn="./mine.py:correct=0.5"                  of a file; half of what it returns
fn="http://localhost:8000/score"            a server
fn='("mine:length=0.2", "mine:correct=1")'  the weighted sum of several
"""

import ast
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

FIELD = "config.reward.fn"
SERVERS = ("http://", "https://")
_WEIGHTED = re.compile(r"(?P<name>.*[^=])=(?P<weight>[^=:/]*)", re.DOTALL)
_EXAMPLE = """'("mine:length=0.2", "mine:correct=1")'"""


class Term(NamedTuple):
  """One function of the sum.

  Attributes:
    name: "package.module:function", "FILE.py:function" or the address of a
      server.
    weight: Weight of the function in the sum; with 0 it is only measured.
    label: What its metric is called, `reward_fn_<label>`.
  """

  name: str
  weight: float
  label: str


def terms_of(text: str) -> tuple[Term, ...]:
  """The functions that `config.reward.fn` names; () for an empty text.

  Raises:
    ValueError: The text is no list of names, a weight is no number, or all
      weights are 0.
  """
  pairs = [_split(name) for name in names_of(text, FIELD, _EXAMPLE)]
  labels = distinct(_label(name) for name, _ in pairs)
  terms = [Term(*p, label) for p, label in zip(pairs, labels, strict=True)]
  if terms and not any(term.weight for term in terms):
    raise ValueError(
      f"{FIELD}={text!r}: all weights are 0, so that the functions would change"
      " nothing. Give one of them another weight."
    )
  return tuple(terms)


def names_of(text: str, field: str, example: str) -> tuple[str, ...]:
  """The names in a field that holds one, or a list of them in quotes.

  Args:
    text: Value of the field; there are no names in an empty one.
    field: The field, for errors.
    example: How several are written, for errors.

  Raises:
    ValueError: The text is no list of names.
  """
  text = text.strip()
  if not text.startswith(("(", "[")):
    return (text,) if text else ()
  try:
    found = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    found = None
  if isinstance(found, str):
    found = (found,)
  if not found or not all(isinstance(name, str) for name in found):
    raise ValueError(
      f"{field}={text!r} is no list of names. Several are written with quotes,"
      f" and quoted once more for the shell: --{field}={example}."
    )
  return tuple(name.strip() for name in found)


def distinct(labels: Iterable[str]) -> list[str]:
  """Labels in their order; one that was there before gets a number."""
  found: list[str] = []
  for base in labels:
    label, number = base, 1
    while label in found:
      number += 1
      label = f"{base}_{number}"
    found.append(label)
  return found


def _split(name: str) -> tuple[str, float]:
  """(name, weight); what follows a "?" in an address is all the server's."""
  found = _WEIGHTED.fullmatch(name)
  if found is None or (name.startswith(SERVERS) and "?" in name):
    return name, 1.0
  try:
    weight = float(found["weight"])
  except ValueError:
    weight = math.nan
  if not math.isfinite(weight):
    raise ValueError(
      f"{FIELD}: {found['weight']!r} in {name!r} is no weight. Write a number"
      " behind the '=', such as 'mine:length=0.2', or nothing for 1."
    )
  return found["name"], weight


def _label(name: str) -> str:
  return "endpoint" if name.startswith(SERVERS) else label_of(name)


def label_of(name: str) -> str:
  """What follows the last colon of a name, in letters that a metric has."""
  return re.sub(r"\W+", "_", name.rpartition(":")[2]).strip("_") or "function"
