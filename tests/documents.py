"""Reads pages of documentation: their commands, fields, links and anchors.

Used by test_documents.py. Nothing is run here, and a page is nothing but text.
"""

import ast
import json
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (
  *(ROOT / "README.md", ROOT / "benchmarks/README.md"),
  *(ROOT / "launch/README.md", *sorted(DOCS.rglob("*.md"))),
  *sorted(DOCS.rglob("*.ipynb")),
)
_FOLDERS = ("perl_jax", "tests", "configs", "launch", "benchmarks", "docs")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
# Whose names stand in the first column of a table, beside ours.
_OTHERS = ("TRL", "PEFT", "Tunix")
_HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
# How the commands begin that are checked.
PROGRAMS = re.compile(
  r"(python -m|python launch/|perl_jax -|make [a-z]|launch/[a-z]|sbatch "
  r"|bash [a-z]|pip install )"
)


class Equivalent(NamedTuple):
  """A row of a table of equivalents.

  Attributes:
    heading: The heading above the table.
    theirs: The cell with the other project's names.
    here: The cell with ours.
    differs: The cell behind them, "" if there is none.
  """

  heading: str
  theirs: str
  here: str
  differs: str


class Command(NamedTuple):
  """A command line of a page.

  Attributes:
    page: The page, from the root.
    words: What a shell makes of the line, without assignments in front.
  """

  page: str
  words: tuple[str, ...]


def text(page: pathlib.Path) -> str:
  """What a page says; of a notebook its cells, without what they printed."""
  read = page.read_text(encoding="utf-8")
  if page.suffix != ".ipynb":
    return read
  fences = {"code": "```python\n{}\n```", "markdown": "{}"}
  return "\n\n".join(
    fences[cell["cell_type"]].format("".join(cell["source"]))
    for cell in json.loads(read)["cells"]
  )


def prose(page: str) -> str:
  """A page without its blocks of code."""
  return _FENCE.sub("", page)


def lines(page: str) -> Iterator[str]:
  """Lines of the blocks that a shell reads, continued ones joined."""
  for language, block in _FENCE.findall(page):
    if language in ("bash", "sh", ""):
      yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def docstring_page(path: pathlib.Path) -> str:
  """A module's docstring as a page: its indented lines are a block of code."""
  docstring = ast.get_docstring(ast.parse(text(path))) or ""
  lines = [line for line in docstring.splitlines() if line.startswith("  ")]
  return "\n".join(["```bash", *map(str.strip, lines), "```", ""])


def spans(page: str) -> Iterator[str]:
  """What stands between single backticks in the text of a page."""
  for found in _SPAN.findall(prose(page)):
    yield " ".join(found.split())


def python_blocks(page: str) -> list[str]:
  """The blocks of a page that are Python."""
  return [block for language, block in _FENCE.findall(page)
          if language == "python"]  # fmt: skip


def commands(name: str, page: str) -> Iterator[Command]:
  """The commands of this project on a page, in blocks and in the text."""
  variables: dict[str, str] = {}
  for line in [*lines(page), *spans(page)]:
    line = line.strip()
    if found := re.fullmatch(r"([a-z]+)=(\"[^\"]*\"|\S+)( +#.*)?", line):
      variables[found[1]] = found[2].strip('"')
      continue
    if found := re.fullmatch(r"for (\w) in (\S+).*; do", line):
      variables[found[1]] = found[2]
      continue
    for variable, value in variables.items():
      line = re.sub(rf"\${variable}\b", lambda _, v=value: v, line)
    line = line.removeprefix(".venv/bin/")
    if PROGRAMS.match(line):
      yield Command(name, tuple(shlex.split(line, comments=True)))


def flags(page: str) -> Iterator[str]:
  """The flags that the text of a page names, such as "--config.beta=0.1"."""
  for span in spans(page):
    if re.match(r"--[a-z]", span):
      yield from (w for w in shlex.split(span) if w.startswith("--"))


def fields(page: str) -> Iterator[str]:
  """Names of config fields in tables: "field", or "here" beside other names.

  Commands, flags and files in such a column are left out.
  """
  column = None
  for line in prose(page).splitlines():
    cells = [cell.strip() for cell in line.split("|")]
    if not line.startswith("|"):
      column = None
    elif cells[1] == "field":
      column = 1
    elif cells[1:3] in [[other, "here"] for other in _OTHERS]:
      column = 2
    elif column is not None:
      for name in _SPAN.findall(cells[column]):
        if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*(\.\*)?", name):
          yield name


def equivalents(page: str) -> Iterator[Equivalent]:
  """Rows of the tables that have another project's names beside ours."""
  heading, inside = "", False
  for line in prose(page).splitlines():
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    if line.startswith("#"):
      heading = line.lstrip("# ")
    if not cells:
      inside = False
    elif cells[:2] in [[other, "here"] for other in _OTHERS]:
      inside = True
    elif inside and not line.startswith("| ---"):
      yield Equivalent(heading, *(*cells, "")[:3])


def metrics(page: str, column: str) -> Iterator[tuple[str, str]]:
  """What tables of metrics name in a column, each with the table's heading.

  `column` is "theirs" or "here"; their headings begin with "Metrics of".
  """
  for row in equivalents(page):
    if row.heading.startswith("Metrics of "):
      for name in spans(getattr(row, column)):
        yield row.heading, name


def defaults(cell: str) -> Iterator[tuple[str, str]]:
  """Names with what stands in brackets behind them: "`seed` (0)"."""
  yield from re.findall(r"`([a-z_.0-9]+)` \(([^() ]+)\)", cell)


def dotted(text: str) -> Iterator[str]:
  """Names such as `data.max_len` in a text, without names of files."""
  files = (".jsonl", ".json", ".html", ".py")
  for name in _SPAN.findall(text):
    if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name):
      yield from () if name.endswith(files) else (name,)


def paths(page: str) -> Iterator[str]:
  """Files and folders of the project that the text of a page names."""
  for span in spans(page):
    if re.fullmatch(rf"({'|'.join(_FOLDERS)})/[\w./-]*", span):
      yield span


def links(page: str) -> Iterator[str]:
  """Targets of the links of a page that lead to files and headings here."""
  for target in _LINK.findall(_SPAN.sub("", prose(page))):
    if not re.match(r"[a-z]+:", target):
      yield target


def anchors(page: str) -> set[str]:
  """The anchors that GitHub gives to the headings of a page."""
  found: set[str] = set()
  for heading in _HEADING.findall(prose(page)):
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
    number, anchor = 0, slug
    while anchor in found:
      number += 1
      anchor = f"{slug}-{number}"
    found.add(anchor)
  return found


def broken_links(name: str, page: str) -> list[str]:
  """Links of a page, which lies at `name`, whose target is not there."""
  broken = []
  for link in links(page):
    path, _, anchor = link.partition("#")
    target = ((ROOT / name).parent / path) if path else ROOT / name
    if not target.exists():
      broken.append(f"{name}: {link} is not there")
    elif anchor and anchor not in anchors(text(target) if path else page):
      broken.append(f"{name}: {link} has no such heading")
  return broken
