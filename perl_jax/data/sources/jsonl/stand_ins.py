"""Texts that stand for nothing, such as "nan" and "<noinput>".

Writers leave them in fields that are optional. Alpaca's first release has
"<noinput>" and "No input" where an instruction has no input, and a missing
value that pandas made a text of is "nan".
"""

from collections import Counter
from typing import Any

from perl_jax.data.sources.jsonl import pairs, refused

Fields = dict[str, Any]
_NOTHING = {
  *("nan", "none", "null", "n/a", "<none>", "<null>", "<n/a>"),
  *("noinput", "no input", "<noinput>", "<no input>", "[noinput]"),
  *("[no input]", "no input.", "(no input)"),
}
# What an instruction may have beside it.
_BESIDE = ("input", "context")
_NEEDED = ("prompt", "instruction", "output", *pairs.REPLIES)
# What was done to a row, for the log.
LEFT_OUT = (
  "have an input or a system message that stands for none, such as 'nan' or"
  " '<noinput>', which is left out"
)
KEPT = (
  "have a prompt or a reply that is 'nan', as pandas writes a missing value;"
  " they are read as they stand"
)


def without(fields: Fields, counts: Counter[str]) -> Fields:
  """Returns a row without texts that stand for nothing in optional fields.

  Args:
    fields: A row with our names.
    counts: How many rows were changed, by what was done; updated in place.
  """
  names = refused.SYSTEM
  if "instruction" in fields:
    names = (*names, *_BESIDE)
  gone = {name for name in names if _is_nothing(fields.get(name))}
  if gone:
    counts[LEFT_OUT] += 1
    fields = {name: fields[name] for name in fields if name not in gone}
  if any(fields.get(name) in ("nan", "NaN") for name in _NEEDED):
    counts[KEPT] += 1
  return fields


def _is_nothing(value: Any) -> bool:
  return isinstance(value, str) and value.strip().lower() in _NOTHING
