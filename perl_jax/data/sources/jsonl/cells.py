"""Values as writers of tables leave them, as the values that rows hold.

Missing values are NaN where a column is one of numbers or came through pandas,
texts are bytes where a column has no type of texts, and numbers may be
decimals.
"""

import decimal
from typing import Any

_PLAIN = {str, int, bool, list, dict}


def are_plain(fields: dict[str, Any]) -> bool:
  """Whether no value of a row is missing or of an odd type."""
  return _PLAIN.issuperset(map(type, fields.values()))


def is_missing(value: Any) -> bool:
  """Whether a value is null or NaN."""
  return value is None or (isinstance(value, float) and value != value)


def plain(value: Any) -> Any:
  """Returns bytes that are UTF-8 as text, and a decimal as a number."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value
  if isinstance(value, decimal.Decimal):
    return int(value) if value == value.to_integral_value() else float(value)
  return value
