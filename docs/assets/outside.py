"""Lets pages of the site link to files outside docs/, as they do on GitHub.

A hook of MkDocs, which knows no file outside its folder. Markdown files of the
project become pages of the site. Other files that a page links to, such as logs
and configs, are copied into it. Links to both are rewritten.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = "docs"
# Files of the project that are pages, and where in the site.
PAGES = {
  "README.md": "project.md",
  "CHANGELOG.md": "changelog.md",
  "benchmarks/README.md": "benchmarks/README.md",
  "launch/README.md": "launch/README.md",
}
COPIES = "files"
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^()\s#:]+)(#[^()\s]*)?(\))")


def origin(page: str) -> str:
  """The file of the project that is a page of the site, from the root."""
  sources = {uri: source for source, uri in PAGES.items()}
  return sources.get(page, posixpath.join(DOCS, page))


def place(source: str) -> str:
  """Where in the site a file of the project is, given from the root."""
  if source in PAGES:
    return PAGES[source]
  inside = posixpath.relpath(source, DOCS)
  return posixpath.join(COPIES, source) if inside[:2] == ".." else inside


def rewritten(markdown: str, page: str) -> str:
  """A page whose links lead to where the files are in the site."""
  source = origin(page)

  def link(found: re.Match[str]) -> str:
    target = posixpath.normpath(
      posixpath.join(posixpath.dirname(source), found[2])
    )
    if not (ROOT / target).is_file():
      return found[0]  # MkDocs says that it is not there
    there = posixpath.relpath(place(target), posixpath.dirname(page) or ".")
    return f"{found[1]}{there}{found[3] or ''}{found[4]}"

  parts, end = [], 0
  for fence in _FENCE.finditer(markdown):
    parts += [_LINK.sub(link, markdown[end : fence.start()]), fence[0]]
    end = fence.end()
  return "".join([*parts, _LINK.sub(link, markdown[end:])])


def linked(markdown: str, source: str) -> set[str]:
  """Files of the project that a file of it links to, from the root."""
  folder = posixpath.dirname(source)
  found = {
    posixpath.normpath(posixpath.join(folder, target))
    for _, target, _, _ in _LINK.findall(_FENCE.sub("", markdown))
  }
  return {path for path in found if (ROOT / path).is_file()}


def on_files(files: Files, config: Any) -> Files:
  """Adds the pages and the files that lie outside docs/."""
  for source, page in PAGES.items():
    text = (ROOT / source).read_text(encoding="utf-8")
    files.append(File.generated(config, page, content=text))
  pages = [file.src_uri for file in files.documentation_pages()]
  needed = set()
  for source in map(origin, pages):
    needed |= linked((ROOT / source).read_text(encoding="utf-8"), source)
  for source in sorted(needed):
    if place(source).startswith(f"{COPIES}/"):
      path = os.fspath(ROOT / source)
      files.append(
        File.generated(config, place(source), content=Path(path).read_bytes())
      )
  return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
  """Rewrites the links of a page before MkDocs checks them."""
  del kwargs
  return rewritten(markdown, page.file.src_uri)
