"""Ways out of what is commonly wrong with files of JSON lines.

The commands work as they stand, with a Python and the usual tools of a shell.
"""

import json
import pathlib
import re
import shlex
from typing import Any

from perl_jax.data.sources.jsonl import conversations, foreign

_EACH = 'python -c "import json; [print(json.dumps({row})) for r in {rows}]"'
_LOADED = "json.load(open({path}, encoding='utf-8'))"
# Fields of rows that are lists of objects.
_TALKS = ("messages", "conversations", "conversation", "prompt", "chosen")
_TALKS += ("rejected", "response", "completion", "tools", "functions")
_TALKS += ("responses", "completions", "replies", "answers", "candidates")
_TALKS += ("generations", "outputs")
# Fields of which a row has one.
_ROW = {"prompt", "question", "instruction", "text", "input", *_TALKS}
_COMMA = re.compile(r",\s*([}\]])")
# What JSON allows neither in a text nor around it: RS of JSON text sequences,
# the end of a file of DOS, what a disk leaves behind a file.
_CONTROLS = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f]")


def of_line(text: str, file: pathlib.Path, last: bool) -> str:
  """Returns the way out of a line that is not JSON, "" if none is known.

  Args:
    text: The line.
    file: The file that it is in.
    last: Whether nothing follows the line, not even its end.
  """
  path, stripped = shlex.quote(str(file)), text.strip()
  made = foreign.lines_beside(file)
  if stripped.startswith("//") or stripped.startswith("#"):
    return f" Comments are left out with: grep -v '^ *[#/]' {path} > {made}"
  if stripped in ("{", "}"):
    return (
      f" Objects over several lines become lines with: jq -c . {path} > {made}"
    )
  if "\r" in stripped:
    return (
      " Its lines end with carriage returns, which become line ends with: tr"
      f" '\\r' '\\n' < {path} > {made}"
    )
  cleaned = _CONTROLS.sub("", text).strip()
  if cleaned != text.strip(" \t\n") and (not cleaned or _is_json(cleaned)):
    return (
      " It has control characters, which go with: tr -d"
      f" '\\000-\\010\\013\\014\\016-\\037' < {path} > {made}"
    )
  if stripped.endswith(",") and _is_json(stripped[:-1]):
    return (
      " Commas at the ends of lines go with: sed 's/,[[:space:]]*$//'"
      f" {path} > {made}"
    )
  if _is_json(_COMMA.sub(r"\1", stripped)):
    return " Leave out the comma before the bracket that closes."
  if stripped.startswith("{'"):
    return " It is Python's text of an object: write rows with json.dumps."
  if stripped[:1] not in ("{", "[") and "," in stripped:
    return f" If the file is a table: {foreign.refusal(file, 'csv')}"
  if last:
    return " It is the end of the file: was it copied or downloaded whole?"
  return ""


def of_rows(fields: dict[str, Any], file: pathlib.Path) -> str:
  """Returns how a file of one object with all rows in it is read; "" if not.

  Args:
    fields: The only object of the file.
    file: The file.
  """
  loaded = _LOADED.format(path=foreign.python_text(file))
  made = foreign.lines_beside(file)
  for name, value in fields.items():
    if _is_list_of_objects(value) and not _is_field(name, value):
      # As the viewer of the Hugging Face hub gives rows.
      within = all(isinstance(item.get("row"), dict) for item in value)
      row = "r['row']" if within else "r"
      command = _EACH.format(row=row, rows=f"{loaded}[{name!r}]")
      return (
        f"the rows are in {name!r} of one object. They become lines with:"
        f" {command} > {made}"
      )
  if _are_rows(fields):
    command = _EACH.format(row="r", rows=f"{loaded}.values()")
    return (
      "the rows are the values of one object. They become lines with:"
      f" {command} > {made}"
    )
  if fields and all(map(_is_column, fields.values())):
    return (
      "the columns of all rows are in one object. With pandas, rows become"
      " lines with to_json(..., orient='records', lines=True)."
    )
  return ""


def has_rows(fields: dict[str, Any]) -> bool:
  """Whether one object has rows in it, and not only what describes others."""
  lists = [v for v in fields.values() if _is_list_of_objects(v)]
  if any(not _ROW.isdisjoint(items[0]) for items in lists):
    return True
  return not _ROW.isdisjoint(fields) and all(map(_is_column, fields.values()))


def one_object(file: pathlib.Path) -> dict[str, Any] | None:
  """Returns the object that a JSON file is as a whole; None of others."""
  try:
    value = json.loads(file.read_text(encoding="utf-8-sig"))
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def of_list(text: str, file: pathlib.Path) -> str:
  """Returns the way out of a text that begins with [ and holds no objects."""
  path = foreign.python_text(file)
  rows = _LOADED.format(path=path)
  if _is_json(text):
    lists = json.loads(text)
  else:
    if _is_json(_COMMA.sub(r"\1", text)):
      return " Leave out the comma before the bracket that closes."
    first = text.split("\n", 1)[0]
    if not _is_json(first):
      return ""
    lists = [json.loads(first)]
    rows = f"map(json.loads, filter(str.strip, open({path}, encoding='utf-8')))"
  items = next((found for found in lists if isinstance(found, list)), [])
  if not _is_list_of_objects(items):
    return ""
  made = foreign.lines_beside(file)
  if _is_field("", items):
    command = _EACH.format(row="{'messages': r}", rows=rows)
    return f" Lists that are conversations become rows with: {command} > {made}"
  command = _EACH.format(row="r", rows=f"{rows} for r in r")
  return f" Lists of rows become lines with: {command} > {made}"


def _is_json(text: str) -> bool:
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def _is_list_of_objects(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(item, dict) for item in value)
  )


def _is_field(name: str, value: list[dict[str, Any]]) -> bool:
  """Whether a list of objects is a field of a row, as messages are."""
  return name in _TALKS or all(
    not item.keys().isdisjoint(conversations.WHO) for item in value
  )


def _are_rows(fields: dict[str, Any]) -> bool:
  """Whether all values of an object are objects with the same fields."""
  rows = list(fields.values())
  return (
    len(rows) > 1
    and all(isinstance(row, dict) and row for row in rows)
    and not _ROW.isdisjoint(rows[0])
    and all(row.keys() == rows[0].keys() for row in rows)
  )


def _is_column(value: Any) -> bool:
  """Whether a value has a text or number for each row, as a list or object."""
  if isinstance(value, dict):
    if not all(key.isdecimal() for key in value):
      return False
    value = list(value.values())
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(item, (str, int, float)) for item in value)
  )
