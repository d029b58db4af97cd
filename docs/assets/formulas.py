"""Shows the formulas of docstrings as code: a Griffe extension for the site.

A formula is a paragraph by itself. Markdown would take it for text, and its
stars and brackets for emphasis and links.
"""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^[A-Z][a-z]+:$", re.MULTILINE)
_SENTENCE = re.compile(r"[.:]\)?\s*$")
_EQUATION = re.compile(r"^[\w(|'-][^.\n]* = ")


def with_code(docstring: str) -> str:
  """A docstring whose paragraphs that are formulas are indented, as code is.

  That is a paragraph before the sections that begins with an equation and does
  not end as a sentence does.
  """
  section = _SECTION.search(docstring)
  end = section.start() if section else len(docstring)
  paragraphs = [
    re.sub(r"^", "    ", text, flags=re.MULTILINE)
    if _EQUATION.match(text) and not _SENTENCE.search(text)
    else text
    for text in docstring[:end].split("\n\n")
  ]
  return "\n\n".join(paragraphs) + docstring[end:]


class Formulas(griffe.Extension):
  """Changes the docstrings as they are read."""

  def on_object(self, *, obj: Any, **kwargs: Any) -> None:
    """Changes the docstring of a module, class or function, if it has one."""
    del kwargs
    if obj.docstring:
      obj.docstring.value = with_code(obj.docstring.value)
