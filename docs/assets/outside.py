"""Lets pages of the site link to files outside docs/, as they do on GitHub.

A hook of MkDocs, which knows no file outside its folder. Markdown files of the
project, and notebooks, become pages of the site. Other files that a page links
to, such as logs and configs, are copied into it. Links to both are rewritten.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import nbconvert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = "docs"
# Files of the project that are pages, and where in the site.
PAGES = {
  "README.md": "project.md",
  "CHANGELOG.md": "changelog.md",
  "benchmarks/README.md": "benchmarks/README.md",
  "launch/README.md": "launch/README.md",
  "docs/tour.ipynb": "tour.md",
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


def read(source: str) -> tuple[str, dict[str, bytes]]:
  """Markdown of a file of the project, and the images that it shows.

  Args:
    source: A Markdown file, or a notebook with its outputs, from the root.
  """
  if not source.endswith(".ipynb"):
    return (ROOT / source).read_text(encoding="utf-8"), {}
  names = {"unique_key": Path(source).stem, "output_files_dir": "images"}
  text, found = nbconvert.MarkdownExporter().from_filename(
    os.fspath(ROOT / source), resources=names
  )
  return text, found["outputs"]


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
    text, images = read(source)
    files.append(File.generated(config, page, content=text))
    for name, content in images.items():
      files.append(File.generated(config, name, content=content))
  pages = [file.src_uri for file in files.documentation_pages()]
  needed = set()
  for source in map(origin, pages):
    needed |= linked(read(source)[0], source)
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
