"""The reward functions that a config names, with their weights.

fn="mine:correct"                           a function of a module
fn="./mine.py:correct=0.5"                  of a file; half of what it returns
fn="http://localhost:8000/score"            a server
fn='("mine:length=0.2", "mine:correct=1")'  the weighted sum of several
"""

import ast
import math
import re
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
  names = _names(text)
  terms, labels = [], set()
  for name in names:
    name, weight = _split(name)
    label = base = _label(name)
    number = 1
    while label in labels:
      number += 1
      label = f"{base}_{number}"
    labels.add(label)
    terms.append(Term(name, weight, label))
  if terms and not any(term.weight for term in terms):
    raise ValueError(
      f"{FIELD}={text!r}: all weights are 0, so that the functions would change"
      " nothing. Give one of them another weight."
    )
  return tuple(terms)


def _names(text: str) -> tuple[str, ...]:
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
      f"{FIELD}={text!r} is no list of names. Several functions are written"
      f" with quotes, and quoted once more for the shell: --{FIELD}={_EXAMPLE}."
    )
  return tuple(name.strip() for name in found)


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
  if name.startswith(SERVERS):
    return "endpoint"
  return re.sub(r"\W+", "_", name.rpartition(":")[2]).strip("_") or "function"
